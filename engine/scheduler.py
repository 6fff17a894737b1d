"""Scheduler: which sequences run next, and in which blocks. Knows nothing of arrays, time or processes.

A step has a budget of tokens. Sequences that decode go first, a token each; what is left is shared evenly among the
prompts being read, so that a long one neither starves the others nor is starved. Tokens whose logits are wanted, drawn
again or scored, have a budget of their own: a row of logits is as long as the vocabulary. Sequences are admitted when
their blocks are there; when blocks run out, the youngest gives its up and computes them again later. The oldest is
never made to wait by a younger one, so everything ends.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.blocks import BlockPool
from engine.queue import FairQueue
from engine.rows import Rows
from engine.sequence import Sequence, Status

MAX_PREFILLING = 8  # prompts read side by side; more would only cut the budget into crumbs


@dataclass(frozen=True, slots=True)
class PlannedChunk:
    """Tokens [start, start + length) of a sequence go in; `is_last`: after them it has a next token."""

    sequence: Sequence
    start: int
    length: int
    is_last: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: all decode rows as they stand, these chunks, and blocks to copy before."""

    chunks: tuple[PlannedChunk, ...]
    copies: tuple[tuple[int, int], ...]  # (from, to)
    started: tuple[Sequence, ...]  # admitted in this step

    def is_empty(self, rows: Rows) -> bool:
        return not len(rows) and not self.chunks


class Scheduler:
    """Owned by the Engine."""

    def __init__(
        self, pool: BlockPool, max_batch_tokens: int, max_logits: int, max_sequences: int, max_context: int
    ) -> None:
        self.pool = pool
        self.max_batch_tokens = max(max_batch_tokens, max_sequences)
        self.max_logits = max(max_logits, MAX_PREFILLING)  # in a step, those of decode rows not counted
        self.max_sequences = max_sequences
        self.queue = FairQueue()
        self.rows = Rows(max_sequences, -(-max_context // pool.block_size) + 1)
        self.prefilling: list[Sequence] = []
        self.draining: list[Sequence] = []  # their last token is in flight
        self.preempted: list[Sequence] = []  # oldest first
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        return len(self.rows) + len(self.prefilling) + len(self.draining)

    @property
    def num_waiting(self) -> int:
        return len(self.queue) + len(self.preempted)

    def add(self, sequence: Sequence) -> None:
        self.queue.push(sequence)

    def schedule(self, acquire: Callable[[Sequence], bool]) -> Plan:
        """What the next step computes. `acquire` gets a sequence its adapter, or takes it away to wait for it."""
        num_preemptions = self.num_preemptions
        copies = self.grow_rows()
        # whoever was just put back may have a token in flight; the next step knows it
        started = self.admit(acquire) if self.num_preemptions == num_preemptions else []
        return Plan(self.share_budget(), tuple(copies), tuple(started))

    # Blocks for the decode rows

    def grow_rows(self) -> list[tuple[int, int]]:
        """See to it that every row owns the block it writes to next, and owns it alone."""
        rows, size, copies = self.rows, self.pool.block_size, list[tuple[int, int]]()
        indices, offsets = np.divmod(rows.positions[: len(rows)], size)
        blocks = rows.tables[rows.numbers, indices]
        in_need = np.flatnonzero((offsets == 0) | (self.pool.references[blocks] > 1))
        needing = [rows.sequences[row] for row in in_need]  # a row may be another's before its turn comes
        for sequence, index in zip(needing, indices[in_need].tolist(), strict=True):
            if sequence.status is not Status.DECODING:
                continue
            if index < len(sequence.blocks) and self.pool.references[sequence.blocks[index]] == 1:
                continue  # the others have gone their own ways
            if not self.ensure_available(sequence):
                continue
            block = self.pool.allocate()
            if index == len(sequence.blocks):
                sequence.blocks.append(block)
            else:  # written on by several: copy first
                copies.append((sequence.blocks[index], block))
                self.pool.release(sequence.blocks[index])
                sequence.blocks[index] = block
            rows.set_block(sequence, index, block)
        return copies

    def ensure_available(self, sequence: Sequence) -> bool:
        """Make a block free for this sequence, at the cost of younger ones; False if it was itself the youngest."""
        while not self.pool.num_available:
            victim = max([*self.rows.sequences, *self.prefilling], key=lambda running: running.seniority)
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks; it comes back before anything new, and computes them again."""
        self.retire(sequence)
        sequence.status = Status.WAITING
        self.preempted.append(sequence)
        self.preempted.sort(key=lambda waiting: waiting.seniority)
        self.num_preemptions += 1

    # Admission

    def admit(self, acquire: Callable[[Sequence], bool]) -> list[Sequence]:
        """Take in whoever is next, as long as rows and blocks allow."""
        started: list[Sequence] = []
        while len(self.prefilling) < MAX_PREFILLING:
            sequence = self.preempted[0] if self.preempted else self.queue.peek()
            if sequence is None:
                break
            if sequence.adapter_slot is None and not acquire(sequence):
                self.take_waiting(sequence)
                continue
            if not self.has_room(sequence):
                break
            if self.preempted:
                self.preempted.pop(0)
            else:
                self.queue.pop()
            self.begin(sequence)
            started.append(sequence)
        return started

    def take_waiting(self, sequence: Sequence) -> None:
        """Remove a waiting sequence, wherever it waits."""
        if sequence in self.preempted:
            self.preempted.remove(sequence)
        else:
            self.queue.remove(sequence)

    def has_room(self, sequence: Sequence) -> bool:
        """Rows for all its choices; blocks for its tokens, and one to spare for each that runs."""
        reserved = sum(len(other.choices) - 1 for other in self.prefilling)
        if self.num_running + reserved + len(sequence.choices) > self.max_sequences:
            return False
        shared = self.find_cached(sequence)
        needed = -(-len(sequence.tokens) // self.pool.block_size) - len(shared)
        available = self.pool.num_available - sum(map(self.pool.is_idle, shared))
        return available >= needed + min(self.num_running, self.pool.num_blocks // 8)

    def find_cached(self, sequence: Sequence) -> list[int]:
        """Blocks that hold its beginning already. One token at least is left to compute, for its logits."""
        if sequence.wants_prompt_scores:
            return []
        size, found = self.pool.block_size, list[int]()
        for index in range((len(sequence.tokens) - 1) // size):
            block = self.pool.find(sequence.digest_of(index, size))
            if block is None:
                break
            found.append(block)
        return found

    def begin(self, sequence: Sequence) -> None:
        """Give a sequence its blocks: those that are cached, then new ones."""
        pool, size = self.pool, self.pool.block_size
        shared = self.find_cached(sequence)
        for block in shared:
            pool.share(block)
        missing = -(-len(sequence.tokens) // size) - len(shared)
        sequence.blocks = shared + [pool.allocate() for _ in range(missing)]
        sequence.num_cached = sequence.num_shared = len(shared) * size
        sequence.num_remembered = len(shared)
        sequence.status = Status.PREFILLING
        self.prefilling.append(sequence)

    # The budget

    def share_budget(self) -> tuple[PlannedChunk, ...]:
        """Even shares of what decoding leaves; who needs less than a share leaves the rest to the others."""
        left, left_logits, chunks = self.max_batch_tokens - len(self.rows), self.max_logits, list[PlannedChunk]()
        by_need = sorted(self.prefilling, key=lambda sequence: len(sequence.tokens) - sequence.num_cached)
        for index, sequence in enumerate(by_need):
            num_sharing, start = len(by_need) - index, sequence.num_cached
            missing, silent = len(sequence.tokens) - start, max(0, sequence.first_logits - start)
            length = min(missing, left // num_sharing, silent + left_logits // num_sharing)
            if length:
                chunks.append(PlannedChunk(sequence, start, length, length == missing))
                left -= length
                left_logits -= max(0, length - silent)
        return tuple(chunks)

    # What became of a step

    def start_decoding(self, sequence: Sequence, source: int) -> None:
        """Its tokens are all in and the next one is on its way; if it may have more than that, it gets a row."""
        if sequence in self.prefilling:
            self.prefilling.remove(sequence)
        sequence.status = Status.DECODING
        if sequence.num_generated + 1 >= sequence.request.sampling.max_tokens:
            self.draining.append(sequence)
        else:
            self.rows.join(sequence, source)

    def advance_rows(self) -> None:
        """All rows went into a step; those that may have no further token leave."""
        rows = self.rows
        rows.advance()
        is_full = rows.generated[: len(rows)] > rows.last_positions[: len(rows)]
        for sequence in [rows.sequences[row] for row in np.flatnonzero(is_full)]:
            rows.leave(sequence)
            self.draining.append(sequence)

    def fork(self, parent: Sequence, choice: int) -> Sequence:
        """Another choice of the same request, that shares all blocks of its prompt."""
        child = parent.sibling(choice)
        for block in child.blocks:
            self.pool.share(block)
        return child

    def remember(self, sequence: Sequence, num_written: int) -> None:
        """Let others find the full blocks among its first `num_written` tokens."""
        size = self.pool.block_size
        for index in range(sequence.num_remembered, num_written // size):
            self.pool.remember(sequence.blocks[index], sequence.digest_of(index, size))
            sequence.num_remembered = index + 1

    def finish(self, sequence: Sequence) -> None:
        """It needs nothing any more, wherever it was."""
        if sequence.status is Status.WAITING:
            self.take_waiting(sequence)
        else:
            self.retire(sequence)

    def retire(self, sequence: Sequence) -> None:
        """Take a running sequence out of the batch and its blocks back."""
        if sequence.row is not None:
            self.rows.leave(sequence)
        elif sequence in self.prefilling:
            self.prefilling.remove(sequence)
        else:
            self.draining.remove(sequence)
        for block in reversed(sequence.blocks):  # so that a chain's end is forgotten before its beginning
            self.pool.release(block)
        sequence.blocks, sequence.num_cached = [], 0

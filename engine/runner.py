"""Runner: a plan in, a launched step out. Owns the cache's arrays and the kernels; knows no queue and no events.

A step is built and handed to MLX without waiting: the tokens that decode rows take in are outputs of the step
before, wherever that one is by now. The host reads a step's tokens while the next one runs.
"""

from collections.abc import Sequence as Many
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from engine.adjust import Adjuster
from engine.batch import Batch, Chunk, Numbers
from engine.cache import KVCache
from engine.decoder import head, hidden
from engine.event import TokenLogprob
from engine.kernels.table import DecodeStep, Kernels, Tokens
from engine.logprobs import Scores, score
from engine.lora import AdapterStack, LoraRows
from engine.outputs import Outputs, Settings
from engine.rows import Rows
from engine.scheduler import PlannedChunk
from engine.weights import Weights

TABLE_STEP = 8  # block tables grow by so many columns, so that few shapes occur
NO_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way: what was asked, and the arrays that will tell."""

    chunks: tuple[PlannedChunk, ...]
    outputs: Outputs
    tokens: mx.array | Tokens | None  # (draws,)
    scores: Scores | None
    kernels: Kernels  # that drew them

    def read_tokens(self) -> list[int]:
        """Wait for the step; the tokens of all draws."""
        return [] if self.tokens is None else self.kernels.read(self.tokens)

    def read_scores(self) -> tuple[dict[int, TokenLogprob], list[TokenLogprob]]:
        """Logprobs of the drawn tokens by draw, and those of prompt tokens in their order."""
        if self.scores is None:
            return {}, []
        drawn = self.outputs.scored()
        num_prompt = [prompt.sequence.request.sampling.prompt_logprobs or 0 for prompt in self.outputs.prompts]
        records = self.scores.read([count for _, count in drawn] + num_prompt)
        by_draw = {draw: record for (draw, _), record in zip(drawn, records, strict=False)}
        return by_draw, records[len(drawn) :]


class Runner:
    """Owned by the Engine."""

    def __init__(self, weights: Weights, kernels: Kernels, cache: KVCache) -> None:
        self.weights = weights
        self.kernels = kernels
        self.cache = cache
        self.adjuster = Adjuster()
        self._previous: mx.array | Tokens = mx.array(NO_TOKENS)  # what the step before drew

    def launch(
        self,
        rows: Rows,
        chunks: tuple[PlannedChunk, ...],
        copies: Many[tuple[int, int]],
        outputs: Outputs,
        stack: AdapterStack | None,
    ) -> Launched:
        """Start a step."""
        if copies:
            self.settle()
            self.cache.copy_blocks(copies)
        numbers, placed = self.numbers(rows, chunks, outputs)
        adapter_of = numbers.adapter_of
        lora = None if adapter_of is None or stack is None else LoraRows(stack, adapter_of)
        settings = outputs.knobs(rows)
        if not chunks and not rows.num_special:
            step = DecodeStep(numbers, self._previous, rows.sources[: len(rows)], lora, *settings)
            drawn = self.kernels.decode(self.weights, self.cache, step)
            if drawn is not None:
                self._previous = drawn
                return Launched(chunks, outputs, drawn, None, self.kernels)
        self.settle()
        batch = self.batch(rows, chunks, numbers, placed)
        x = hidden(self.weights, self.kernels, self.cache, batch, lora)
        if not outputs.num_rows:
            self._previous = mx.array(NO_TOKENS)
            mx.async_eval(self.cache.arrays())
            return Launched(chunks, outputs, None, None, self.kernels)
        logits = head(self.weights, self.kernels, x, batch)
        tokens = self.draw(logits, batch, rows, outputs, settings)
        scores = self.score(logits, tokens, outputs)
        mx.async_eval([tokens] if scores is None else [tokens, *scores.arrays()])
        self._previous = tokens
        return Launched(chunks, outputs, tokens if outputs.num_draws else None, scores, self.kernels)

    def settle(self) -> None:
        """Wait for a step that MLX knows nothing of: what comes next is MLX's."""
        if not isinstance(self._previous, mx.array):
            self._previous = self._previous.array()

    def numbers(
        self, rows: Rows, chunks: tuple[PlannedChunk, ...], outputs: Outputs
    ) -> tuple[Numbers, tuple[Chunk, ...]]:
        """Decode rows as they stand, then the chunks; and where these are."""
        count, size = len(rows), self.cache.block_size
        decode = rows.positions[:count]
        positions, sequence_of, placed, start = [decode], [rows.numbers], list[Chunk](), count
        for index, chunk in enumerate(chunks, start=count):
            stop = chunk.start + chunk.length
            positions.append(np.arange(chunk.start, stop, dtype=np.int32))
            sequence_of.append(np.full(chunk.length, index, np.int32))
            placed.append(Chunk(start, chunk.length, stop, index))
            start += chunk.length
        all_positions, all_sequences = np.concatenate(positions), np.concatenate(sequence_of)
        tables = self.tables(rows, chunks, int(all_positions.max()) // size + 1)
        slots = tables[all_sequences, all_positions // size] * size + all_positions % size
        adapter_of = adapters_of(rows, chunks)
        return Numbers(all_positions, slots, all_sequences, tables, outputs.rows, adapter_of), tuple(placed)

    def batch(self, rows: Rows, chunks: tuple[PlannedChunk, ...], numbers: Numbers, placed: tuple[Chunk, ...]) -> Batch:
        count = len(rows)
        return Batch(
            tokens=self.tokens(rows, chunks),
            numbers=numbers,
            num_decode_rows=count,
            max_decode_context=int(numbers.positions[:count].max()) + 1 if count else 0,
            chunks=placed,
        )

    def tokens(self, rows: Rows, chunks: tuple[PlannedChunk, ...]) -> mx.array:
        """What goes in: for decode rows what the step before drew, for chunks their tokens."""
        count = len(rows)
        decode, sources = self._previous, rows.sources[:count]
        assert isinstance(decode, mx.array), "MLX goes on only after `settle`"
        if count != decode.size or not np.array_equal(sources, rows.numbers):
            decode = decode[mx.array(sources)] if count else mx.array(NO_TOKENS)
        if not chunks:
            return decode
        parts = [chunk.sequence.tokens[chunk.start : chunk.start + chunk.length] for chunk in chunks]
        read = mx.array(np.concatenate([np.asarray(part, np.int32) for part in parts]))
        return mx.concatenate([decode, read]) if count else read

    def tables(self, rows: Rows, chunks: tuple[PlannedChunk, ...], num_used: int) -> NDArray[np.int32]:
        """The block tables of all sequences of the step, as wide as the longest needs."""
        count, width = len(rows), -(-num_used // TABLE_STEP) * TABLE_STEP
        tables = np.zeros((count + len(chunks), width), np.int32)
        usable = min(width, rows.tables.shape[1])
        tables[:count, :usable] = rows.tables[:count, :usable]
        for line, chunk in enumerate(chunks, start=count):
            blocks = chunk.sequence.blocks[:width]
            tables[line, : len(blocks)] = blocks
        return tables

    def draw(self, logits: mx.array, batch: Batch, rows: Rows, outputs: Outputs, settings: Settings) -> mx.array:
        """One token for each draw, by these settings."""
        if not outputs.num_draws:
            return mx.array(NO_TOKENS)
        if outputs.prompts:
            logits = logits[: outputs.num_draws]
        logits = self.adjuster.adjust(logits, outputs.adjustments(rows), batch.tokens)
        knobs, is_greedy, is_filtered = settings
        return self.kernels.draw(logits, knobs, is_greedy=is_greedy, is_filtered=is_filtered)

    def score(self, logits: mx.array, tokens: mx.array, outputs: Outputs) -> Scores | None:
        """Logprobs, where they are asked for, of drawn tokens and then of prompt tokens."""
        drawn = outputs.scored() if outputs.may_score else []
        if not drawn and not outputs.prompts:
            return None
        draws = [draw for draw, _ in drawn]
        rows = [*draws, *range(outputs.num_draws, outputs.num_rows)]
        known = mx.array([prompt.token for prompt in outputs.prompts], mx.int32)
        targets = mx.concatenate([tokens[mx.array(draws, mx.int32)], known]) if draws else known
        num_top = max(
            [count for _, count in drawn] + [p.sequence.request.sampling.prompt_logprobs or 0 for p in outputs.prompts]
        )
        return score(logits[mx.array(rows, mx.int32)], targets, num_top)


def adapters_of(rows: Rows, chunks: tuple[PlannedChunk, ...]) -> NDArray[np.int32] | None:
    """Each row's adapter slot; None if no row has one."""
    slots = [chunk.sequence.adapter_slot for chunk in chunks]
    decode = rows.adapters[: len(rows)]
    if all(slot is None for slot in slots) and not (decode >= 0).any():
        return None
    parts = [np.full(c.length, -1 if s is None else s, np.int32) for c, s in zip(chunks, slots, strict=True)]
    return np.concatenate([decode, *parts])

"""Sequence: one choice of a request, living: its tokens, its blocks, how far it has come. Owned by the Scheduler."""

from dataclasses import dataclass, field, replace
from enum import Enum, auto
from hashlib import blake2b

from engine.answer import AnswerState
from engine.blocks import Digest, next_digest
from engine.event import FinishReason, TokenLogprob
from engine.request import Request
from engine.vocabulary import Vocabulary


class Status(Enum):
    WAITING = auto()  # in the queue, or put back after its blocks were taken
    PREFILLING = auto()  # some of its tokens are not in the cache yet
    DECODING = auto()  # one token a step
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens` are those known, prompt and answer; a step in flight may already have made the next one."""

    request: Request
    choice: int
    seed: int
    end_ids: frozenset[int]  # tokens that end it
    arrival: int  # order of arrival, for who is the youngest
    tokens: list[int]
    num_prompt: int
    max_length: int  # tokens that it may have in all
    root: Digest  # where its chain of blocks starts
    digests: list[Digest] = field(default_factory=list)  # of its full blocks, as far as anybody asked
    status: Status = Status.WAITING
    num_cached: int = 0  # tokens in the cache while it is read in; afterwards its row knows
    num_shared: int = 0  # tokens that were in the cache when it was admitted
    num_remembered: int = 0  # full blocks that the prefix cache knows
    blocks: list[int] = field(default_factory=list)
    row: int | None = None  # its decode row
    adapter_slot: int | None = None  # while it is in the batch
    has_started: bool = False  # and its sender was told
    has_scored_prompt: bool = False
    prompt_scores: dict[int, TokenLogprob] = field(default_factory=dict)  # by position
    vocabulary: Vocabulary | None = None  # if stop strings may end it
    answer: AnswerState | None = None  # likewise
    is_forking: bool = False  # the other choices start where its prompt ends

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def wants_prompt_scores(self) -> bool:
        return self.request.sampling.prompt_logprobs is not None and not self.has_scored_prompt

    @property
    def first_logits(self) -> int:
        """The first of its tokens that is not only read in, but has a draw or a score after it."""
        return 0 if self.wants_prompt_scores else self.num_prompt - 1

    @property
    def seniority(self) -> tuple[int, int]:
        """The smaller, the longer it has been here."""
        return self.arrival, self.choice

    @property
    def choices(self) -> range:
        """The choices that it stands for: its own, and those that part from it where the prompt ends."""
        return range(self.request.sampling.n) if self.is_forking else range(self.choice, self.choice + 1)

    @property
    def is_special(self) -> bool:
        """Whether its rows ask for more than a draw."""
        return self.request.sampling.changes_logits or self.request.sampling.logprobs is not None

    @property
    def is_finished(self) -> bool:
        return self.status is Status.FINISHED

    def ending_after(self, token: int) -> FinishReason | None:
        """Why the answer ends with its last token, if it does, once its text has come so far too."""
        if self.answer is not None and self.vocabulary is not None:
            self.answer, _ = self.answer.step(self.vocabulary.bytes_of(token))
        return self.ending()

    def ending(self) -> FinishReason | None:
        """Why the answer ends with its last token, if it does."""
        length = len(self.tokens)
        if length == self.num_prompt:
            return None
        if self.tokens[-1] in self.end_ids or (self.answer is not None and self.answer.matched is not None):
            return "stop"
        return "length" if length >= self.max_length else None

    def digest_of(self, index: int, block_size: int) -> Digest:
        """The digest of its full block `index`; each is computed once."""
        while len(self.digests) <= index:
            start = len(self.digests) * block_size
            previous = self.digests[-1] if self.digests else self.root
            self.digests.append(next_digest(previous, self.tokens[start : start + block_size]))
        return self.digests[index]

    def sibling(self, choice: int) -> "Sequence":
        """Another choice of the request, as far as this one has come; what its sender was told is told."""
        return replace(
            self,
            choice=choice,
            tokens=list(self.tokens),
            blocks=list(self.blocks),
            digests=list(self.digests),
            has_started=True,
            has_scored_prompt=True,
            is_forking=False,
        )


def seed_of(request: Request) -> int:
    """The request's seed; without one, a number that its id alone determines, so that it survives a restart."""
    if request.sampling.seed is not None:
        return request.sampling.seed
    return int.from_bytes(blake2b(request.id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

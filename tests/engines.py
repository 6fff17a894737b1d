"""Small engines and what goes into them: tiny models, requests in one line, and an engine that computes on paper."""

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import numpy as np

from engine.adapter import Adapter, LowRank
from engine.config import ModelConfig
from engine.engine import Engine
from engine.event import ChoiceEnded, Event, PromptScored, Started, TokenEvent, TokenLogprob
from engine.kernels.cpu import missing_reason
from engine.kernels.portable import PortableKernels
from engine.kernels.table import Kernels
from engine.lora import AdapterStack
from engine.options import EngineOptions
from engine.outputs import Outputs, Settings
from engine.request import Request, Sampling
from engine.rows import Rows
from engine.scheduler import PlannedChunk
from engine.vocabulary import Vocabulary
from engine.weights import LINEAR_MODULES, Model, Weights
from tests.tiny import Quantization, write_checkpoint

BYTES = Vocabulary(tuple(bytes([value]) for value in range(256)))
FOUR_BIT = (("group_size", 32), ("bits", 4))


@cache
def tiny_model(
    family: str = "llama", quantization: tuple[tuple[str, Any], ...] | None = FOUR_BIT, **changes: Any
) -> Model:
    """A two-layer model with random weights, made once: `tiny_model("mistral", None, sliding_window=8)`."""
    from loaders.checkpoint import load_model

    settings: Quantization | None = None if quantization is None else dict(quantization)
    with TemporaryDirectory() as directory:
        model = load_model(write_checkpoint(directory, family, settings, **changes))
        for _, tensor in model.weights.named():  # all of it here: other threads will use it, and this one may end
            mx.eval(tensor, *(getattr(tensor, part, None) for part in ("scales", "biases")))
        return model


def quickest() -> type[Kernels]:
    """The column for tests of what stands around an engine."""
    if missing_reason() is not None or mx.default_device().type != mx.DeviceType.cpu:
        return PortableKernels
    from engine.kernels.cpu.column import CpuKernels  # only now: it imports what may not be built

    return CpuKernels


def tiny_engine(
    family: str = "llama",
    *,
    model: Model | None = None,
    column: type[Kernels] | None = None,
    vocabulary: Vocabulary | Callable[[], Vocabulary] | None = None,
    **options: Any,
) -> Engine:
    """An engine over a tiny model, with the quickest kernels; `num_blocks` instead of bytes, if wanted."""
    model = model or tiny_model(family)
    sized = sized_options(model.config, options)
    kernels = (column or quickest())(model.config, sized.block_size)
    return Engine(model, kernels, sized, vocabulary or BYTES)


def sized_options(config: ModelConfig, options: dict[str, Any]) -> EngineOptions:
    from engine.cache import block_bytes

    num_blocks = options.pop("num_blocks", 200)
    made = EngineOptions(**{"max_batch_tokens": 64, "cache_dtype": "float32", **options})
    bytes_each = block_bytes(config, made.block_size, made.cache_dtype or "float32")
    return replace(made, cache_bytes=num_blocks * bytes_each)


def ask(
    name: str,
    prompt: int | Iterable[int] = 10,
    *,
    adapter: str | None = None,
    tenant: str = "",
    priority: int = 0,
    resumed: tuple[tuple[int, ...], ...] = (),
    **sampling: Any,
) -> Request:
    """A request: greedy, endless but for its length, with a prompt of so many made-up tokens, unless said otherwise."""
    tokens = made_up(name, prompt) if isinstance(prompt, int) else tuple(prompt)
    settings = Sampling(**{"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **sampling})
    return Request(name, tokens, settings, adapter, tenant, priority, resumed)


def made_up(name: str, count: int, vocab_size: int = 256) -> tuple[int, ...]:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return tuple(rng.integers(0, vocab_size, count).tolist())


@dataclass
class Answer:
    """All that a request's events told."""

    choices: dict[int, list[int]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    messages: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    cached_tokens: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.choices[0]

    def take(self, event: Event) -> None:
        match event:
            case Started():
                self.cached_tokens.append(event.cached_tokens)
            case PromptScored():
                assert self.prompt_logprobs is None, "a prompt is scored once"
                self.prompt_logprobs = event.logprobs
            case TokenEvent():
                assert event.choice not in self.reasons, "nothing follows the end"
                self.choices.setdefault(event.choice, []).append(event.token)
                if event.logprob is not None:
                    self.logprobs.setdefault(event.choice, []).append(event.logprob)
                if event.finish_reason is not None:
                    self.reasons[event.choice] = event.finish_reason
            case ChoiceEnded():
                assert event.choice not in self.reasons, "a choice ends once"
                self.reasons[event.choice] = event.finish_reason
                if event.message is not None:
                    self.messages[event.choice] = event.message


def collect(events: Iterable[Event], into: dict[str, Answer]) -> dict[str, Answer]:
    for event in events:
        if isinstance(event, Started | PromptScored | TokenEvent | ChoiceEnded):
            into.setdefault(event.request_id, Answer()).take(event)
    return into


def run(engine: Engine, max_steps: int = 5000) -> Iterator[Event]:
    """Step until nothing is left to do."""
    for _ in range(max_steps):
        if not engine.has_work:
            return
        yield from engine.step()
    raise AssertionError(f"still at work after {max_steps} steps")


def serve(engine: Engine, requests: Iterable[Request]) -> dict[str, Answer]:
    """Add all, run to the end, and give the answers by request."""
    for request in requests:
        engine.add(request)
    return collect(run(engine), {})


def serve_one(engine: Engine, request: Request) -> Answer:
    return serve(engine, [request])[request.id]


LogitsLog = dict[tuple[str, int, int], mx.array]


def score_of(engine: Engine, context: str, continuation: str) -> float:
    """What an engine whose tokens are bytes says of a continuation."""
    prompt = tuple(f"{context}{continuation}".encode())
    engine.add(Request("scored", prompt, Sampling(max_tokens=1, temperature=0, prompt_logprobs=1)))
    for event in run(engine):
        if isinstance(event, PromptScored):
            return sum(record.logprob for record in event.logprobs[-len(continuation.encode()) :])
    raise AssertionError("the prompt was not scored")


def record_logits(engine: Engine) -> LogitsLog:
    """From now on, the logits of every drawn token, by request, choice and position. Evaluate them before comparing."""
    log: LogitsLog = {}
    original = engine.runner.draw

    def draw(logits: mx.array, batch: Any, rows: Rows, outputs: Outputs, settings: Settings) -> mx.array:
        places = [(sequence, int(rows.generated[row])) for row, sequence in enumerate(outputs.decoding)]
        places += [(drawn.sequence, drawn.position) for drawn in outputs.starting]
        for line, (sequence, position) in enumerate(places):
            log[sequence.request.id, sequence.choice, position] = logits[line]
        return original(logits, batch, rows, outputs, settings)

    engine.runner.draw = draw  # type: ignore[method-assign]
    return log


def random_adapter(model: Model, rank: int = 4, seed: int = 0, scale: float = 2.0, **ranks: int) -> Adapter:
    """An adapter that changes greedy text; `ranks` for single modules, 0 to leave one out."""
    rng, modules = np.random.default_rng(seed), {}
    for index, layer in enumerate(model.weights.layers):
        for name in LINEAR_MODULES:
            wide, own = shape_of(getattr(layer, name).weight), ranks.get(name, rank)
            if own:
                a = rng.standard_normal((wide[1], own)) / wide[1] ** 0.5
                b = rng.standard_normal((own, wide[0])) / 4
                modules[index, name] = LowRank(mx.array(a, mx.float32), mx.array(b, mx.float32), scale)
    return Adapter(modules, f"random-{rank}-{seed}-{scale}-{sorted(ranks.items())}")


def shape_of(weight: mx.array) -> tuple[int, int]:
    rows, columns = getattr(weight, "logical_shape", weight.shape)
    return rows, columns


# An engine without a model: a cell of its cache holds the token itself, and the next token is a hash of all tokens
# that a row can see. Whoever reads a wrong cell, or writes into one that others read, is found out at once.

PAPER_CONFIG = ModelConfig("llama", 97, 1, 1, 1, 1, 1, 1, 1e-5, 10000.0, 4096, True)


class PaperKernels:
    name = "paper"
    cache_dtype = "float32"

    def prepare(self, weights: Weights) -> Weights:
        return weights

    def warm_up(self, weights: Weights, cache: object, max_rows: int, max_tokens: int) -> None:
        """There is nothing to warm."""


@dataclass
class PaperLaunched:
    chunks: tuple[PlannedChunk, ...]
    outputs: Outputs
    tokens: list[int]

    def read_tokens(self) -> list[int]:
        return self.tokens

    def read_scores(self) -> tuple[dict[int, TokenLogprob], list[TokenLogprob]]:
        return {}, [TokenLogprob(output.token, 0.0, ()) for output in self.outputs.prompts]


class PaperRunner:
    """In the runner's place; checks that every sequence writes where nobody else reads, and reads what it wrote."""

    def __init__(self, engine: Engine) -> None:
        self.pool = engine.scheduler.pool
        self.cells = np.full(self.pool.num_blocks * self.pool.block_size, -1)
        self.previous: list[int] = []
        self.num_rows: list[int] = []

    def launch(
        self,
        rows: Rows,
        chunks: tuple[PlannedChunk, ...],
        copies: Iterable[tuple[int, int]],
        outputs: Outputs,
        stack: AdapterStack | None,
    ) -> PaperLaunched:
        size = self.pool.block_size
        for source, target in copies:
            self.cells[target * size : (target + 1) * size] = self.cells[source * size : (source + 1) * size]
        runs = []  # (table, first position, tokens, owners), one for each decode row, then for each chunk
        for row in range(len(rows)):
            token = self.previous[rows.sources[row]]
            runs.append((rows.tables[row], int(rows.positions[row]), [token], 1))
        for chunk in chunks:
            tokens = chunk.sequence.tokens[chunk.start : chunk.start + chunk.length]
            owners = sum(drawn.row == sum(len(run[2]) for run in runs) + chunk.length - 1 for drawn in outputs.starting)
            runs.append((np.asarray(chunk.sequence.blocks), chunk.start, tokens, owners or 1))
        for table, start, tokens, owners in runs:
            slots = self.slots(table, np.arange(start, start + len(tokens)))
            assert (self.pool.references[slots // size] == owners).all(), "only what nobody else holds is written to"
            self.cells[slots] = tokens
        seen = [self.cells[self.slots(run[0], np.arange(run[1] + len(run[2])))] for run in runs]
        for row, sequence in enumerate(rows.sequences):
            last = sequence.num_prompt + sequence.request.sampling.max_tokens - 1
            assert rows.positions[row] < last, "nothing is computed after the last token that was asked for"
            known = sequence.tokens[: len(seen[row])]
            assert seen[row][: len(known)].tolist() == known, "a decode row sees its own tokens"
        for chunk, cells in zip(chunks, seen[len(rows) :], strict=True):
            assert cells.tolist() == chunk.sequence.tokens[: len(cells)], "a chunk sees its own tokens"
        drawn = [next_on_paper(cells, sequence.choice) for cells, sequence in zip(seen, rows.sequences, strict=False)]
        for output in (*outputs.starting, *outputs.replayed):
            sequence = output.sequence
            drawn.append(next_on_paper(sequence.tokens[: sequence.num_prompt + output.position], sequence.choice))
        self.previous = drawn
        self.num_rows.append(sum(len(run[2]) for run in runs))
        return PaperLaunched(chunks, outputs, drawn)

    def slots(self, table: Any, positions: Any) -> Any:
        size = self.pool.block_size
        return table[positions // size] * size + positions % size


def next_on_paper(tokens: Any, choice: int) -> int:
    return zlib.crc32(np.asarray(tokens, np.int32).tobytes(), choice) % PAPER_CONFIG.vocab_size


def paper_engine(**options: Any) -> Engine:
    """An engine that takes microseconds a step: `paper_engine(num_blocks=9, block_size=4)`."""
    model = Model(PAPER_CONFIG, Weights(mx.zeros(1), (), mx.zeros(1), None), "paper")
    engine = Engine(model, PaperKernels(), sized_options(PAPER_CONFIG, options), None)  # type: ignore[arg-type]
    engine.runner = PaperRunner(engine)  # type: ignore[assignment]
    return engine


def paper_answer(prompt: tuple[int, ...], count: int, choice: int = 0) -> list[int]:
    """What the paper engine must answer."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_on_paper(tokens, choice))
    return tokens[len(prompt) :]


def check_invariants(engine: Engine) -> None:
    """Blocks have the owners that are counted, every sequence is in one place, and adapters have the users they say."""
    scheduler, pool = engine.scheduler, engine.scheduler.pool
    running = [*scheduler.rows.sequences, *scheduler.prefilling, *scheduler.draining]
    owners = np.zeros(pool.num_blocks, np.int32)
    for sequence in running:
        assert len(set(sequence.blocks)) == len(sequence.blocks), "a sequence owns a block once"
        owners[sequence.blocks] += 1
    assert owners.tolist() == pool.references.tolist(), "every reference has its owner"
    free, idle = set(pool._free), set(pool._idle)
    assert len(free) == len(pool._free) and not free & idle and 0 not in free | idle
    assert free | idle == {block for block in range(1, pool.num_blocks) if not owners[block]}, "no block is lost"
    assert idle <= set(pool._digest_of), "only what can be found is kept"
    assert {digest: block for block, digest in pool._digest_of.items()} == pool._block_of
    for row, sequence in enumerate(scheduler.rows.sequences):
        assert sequence.row == row
        table = scheduler.rows.tables[row]
        assert table[: len(sequence.blocks)].tolist() == sequence.blocks
    assert scheduler.rows.num_special == sum(sequence.is_special for sequence in scheduler.rows.sequences)
    queued = [sequence for lane in scheduler.queue._lanes.values() for sequence in lane.sequences]
    parked = list(itertools.chain.from_iterable(engine.roster._parked.values()))
    everywhere = [*running, *queued, *scheduler.preempted, *parked]
    living = list(itertools.chain.from_iterable(engine.roster._living.values()))
    assert len(set(map(id, everywhere))) == len(everywhere), "every sequence is in one place"
    assert set(map(id, everywhere)) == set(map(id, living)), "and nowhere else"
    assert len(queued) == len(scheduler.queue)
    assert all(not sequence.blocks for sequence in [*queued, *scheduler.preempted, *parked])
    users = [sequence.adapter_slot for sequence in living if sequence.adapter_slot is not None]
    for index, slot in enumerate(engine.shelf._slots):
        assert users.count(index) == (0 if slot is None else slot.num_users)
    assert scheduler.num_running <= scheduler.max_sequences

"""Engine: any number of requests, many adapters, one forward pass a step. No Ray, no clock, no files.

A step reads: schedule, launch, commit. What is committed is the step launched before, so the host's work on one step
is done while the next one runs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Many
from functools import cached_property

from engine.adapter import Adapter
from engine.admission import check_endings, sequences_of
from engine.blocks import BlockPool, root_digest
from engine.cache import KVCache, block_bytes
from engine.event import (
    AdapterWanted,
    ChoiceEnded,
    Event,
    FinishReason,
    PromptScored,
    Started,
    TokenLogprob,
    token_event,
)
from engine.kernels.table import Kernels
from engine.limits import Capacity, check
from engine.options import EngineOptions
from engine.outputs import outputs_of
from engine.refusal import BadRequest, shown
from engine.request import Request
from engine.roster import Roster
from engine.runner import Launched, Runner
from engine.scheduler import Plan, Scheduler
from engine.sequence import Sequence, Status
from engine.shelf import Shelf
from engine.stats import EngineStats
from engine.vocabulary import Vocabulary
from engine.weights import Model

MAX_LOGITS_BYTES = 64 << 20  # a step's logits, float32, beside those of decode rows
LEAST_BLOCKS = 2  # one is never given out: it takes what belongs nowhere


class Engine:
    """Serves requests step by step. One thread owns it, with everything it holds."""

    def __init__(
        self,
        model: Model,
        kernels: Kernels,
        options: EngineOptions = EngineOptions(),
        vocabulary: Vocabulary | Callable[[], Vocabulary] | None = None,
    ) -> None:
        config, dtype = model.config, options.cache_dtype or kernels.cache_dtype
        context = min(config.max_position, options.max_context or config.max_position)
        most = 2 * options.max_sequences * -(-context // options.block_size)  # what all can fill, and as much kept
        num_blocks = min(most + 1, options.cache_bytes // block_bytes(config, options.block_size, dtype))
        if num_blocks < LEAST_BLOCKS:
            least = LEAST_BLOCKS * block_bytes(config, options.block_size, dtype)
            raise BadRequest(
                f"cache_bytes is {options.cache_bytes}; this model needs {least} for blocks of "
                f"{options.block_size} tokens",
                "cache_bytes",
            )
        self.model = model
        self.options = options
        self._vocabulary = vocabulary
        self.capacity = Capacity(config.vocab_size, min(context, (num_blocks - 1) * options.block_size))
        self.scheduler = Scheduler(
            BlockPool(num_blocks, options.block_size),
            options.max_batch_tokens,
            MAX_LOGITS_BYTES // (4 * config.vocab_size),
            options.max_sequences,
            self.capacity.max_context,
        )
        cache = KVCache(config, num_blocks, options.block_size, dtype)
        self.runner = Runner(kernels.prepare(model.weights), kernels, cache)
        kernels.warm_up(self.runner.weights, cache, options.max_sequences, options.max_batch_tokens)
        self.shelf = Shelf(config.num_layers, options.max_adapter_bytes)
        self.roster = Roster()
        self.counts: Counter[str] = Counter()
        self._in_flight: Launched | None = None
        self._outbox: list[Event] = []

    # What may be asked

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """Asked for when stop strings first need it: a model that starts anew is not to wait until it is read."""
        return self._vocabulary() if callable(self._vocabulary) else self._vocabulary

    def check_request(self, request: Request) -> None:
        """Raise the refusal that this request deserves here and now, if any."""
        check(request, self.capacity)
        if request.id in self.roster:
            raise BadRequest(f"a request with the id {request.id[:60]!r} is running already", "id")
        if request.sampling.n > self.options.max_sequences:
            raise BadRequest(f"n is {request.sampling.n}; this engine runs {self.options.max_sequences} at once", "n")
        if request.sampling.stop and self.vocabulary is None:
            raise BadRequest("stop strings need a vocabulary, and this engine was started without one", "stop")
        if request.adapter is not None:
            self.shelf.check_known(request.adapter)
        check_endings(request, self.model.config)

    def add(self, request: Request) -> None:
        """Take a request, or refuse it; nothing of a refused one remains."""
        self.check_request(request)
        vocabulary = self.vocabulary if request.sampling.stop else None
        arrival, root = self.roster.next_arrival(), self.root_of(request, None)
        for sequence in sequences_of(request, self.model.config, vocabulary, arrival, root):
            reason = sequence.ending()
            if reason is None:
                self.roster.join(sequence)
                self.scheduler.add(sequence)
            else:  # resumed at its very end
                self.tell(ChoiceEnded(request.id, sequence.choice, reason))

    def abort(self, request_id: str) -> bool:
        """Stop a request and free what it holds, now; False if there is none of this id."""
        choices = self.roster.choices(request_id)
        for sequence in choices:
            self.end(sequence, "abort")
        return bool(choices)

    def attach(self, name: str, adapter: Adapter) -> None:
        """Make an adapter known under a name, and let those go on that waited for it."""
        self.roster.mark_answered(name)
        self.shelf.attach(name, adapter)
        self.let_on(name)

    def detach(self, name: str) -> None:
        """Forget an adapter. Who runs with it runs to the end; who waits for it is told that it is gone."""
        self.shelf.detach(name)
        for sequence in self.roster.waiting_for(name):
            self.end(sequence, "error", f"adapter {shown(name)} was detached")

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything; requests that wait for an adapter to come do not count."""
        scheduler = self.scheduler
        is_busy = self._outbox or self._in_flight or scheduler.num_running or scheduler.num_waiting
        return bool(is_busy) or self.next_adapter() is not None

    # A step

    def step(self) -> list[Event]:
        """Launch the next step and tell what the one before it brought."""
        plan = self.scheduler.schedule(self.acquire)
        launched = None if plan.is_empty(self.scheduler.rows) else self.launch(plan)
        if self._in_flight is not None:
            self.commit(self._in_flight)
        self._in_flight = launched
        self.grant_adapters()
        events, self._outbox = self._outbox, []
        return events

    def launch(self, plan: Plan) -> Launched:
        scheduler = self.scheduler
        outputs = outputs_of(scheduler.rows, plan.chunks, self.fork)
        launched = self.runner.launch(scheduler.rows, plan.chunks, plan.copies, outputs, self.shelf.stack())
        scheduler.advance_rows()
        for chunk in plan.chunks:
            chunk.sequence.num_cached = chunk.start + chunk.length
        for draw, drawn in enumerate(outputs.starting, start=len(outputs.decoding)):
            scheduler.start_decoding(drawn.sequence, draw)
        self.counts["steps"] += 1
        self.counts["prompt_tokens"] += sum(chunk.length for chunk in plan.chunks)
        for sequence in plan.started:
            self.tell_started(sequence)
        return launched

    def commit(self, launched: Launched) -> None:
        """Wait for a launched step, and put its results where they belong."""
        tokens = launched.read_tokens()
        logprobs, prompt_logprobs = launched.read_scores()
        self.commit_prompts(launched, prompt_logprobs)
        self.commit_replays(launched, tokens)
        self.commit_tokens(launched.outputs.sampled, tokens, logprobs)

    def commit_tokens(
        self, sequences: Iterable[Sequence], tokens: Many[int], logprobs: Mapping[int, TokenLogprob]
    ) -> None:
        """What each row drew. Most of an engine's time is this loop, so it calls little."""
        outbox, block_size, finished, num_living = self._outbox, self.options.block_size, Status.FINISHED, 0
        for draw, (sequence, token) in enumerate(zip(sequences, tokens, strict=False)):
            if sequence.status is finished:
                continue
            num_living += 1
            known = sequence.tokens
            num_written = len(known)
            known.append(token)
            reason = None
            if token in sequence.end_ids or num_written + 1 >= sequence.max_length or sequence.answer is not None:
                reason = sequence.ending_after(token)
            logprob = logprobs.get(draw) if logprobs else None
            position = num_written - sequence.num_prompt
            outbox.append(token_event((sequence.request.id, sequence.choice, position, token, reason, logprob)))
            if not num_written % block_size and sequence.blocks:
                self.scheduler.remember(sequence, num_written)
            if reason is not None:
                self.close(sequence)
        self.counts["generated_tokens"] += num_living

    def commit_prompts(self, launched: Launched, scores: Many[TokenLogprob]) -> None:
        """Chunks are in the cache: others may find their blocks, and scores wait for the rest of their prompt."""
        for output, record in zip(launched.outputs.prompts, scores, strict=True):
            output.sequence.prompt_scores[output.position] = record
        for chunk in launched.chunks:
            sequence = chunk.sequence
            if sequence.is_finished:
                continue
            if sequence.blocks:
                self.scheduler.remember(sequence, chunk.start + chunk.length)
            if not chunk.is_last:
                continue
            if sequence.wants_prompt_scores:
                sequence.has_scored_prompt = True
                ordered = tuple(record for _, record in sorted(sequence.prompt_scores.items()))
                self.tell(PromptScored(sequence.request.id, ordered))
            if not sequence.request.sampling.max_tokens:
                self.end(sequence, "length")

    def commit_replays(self, launched: Launched, tokens: Many[int]) -> None:
        """Tokens drawn a second time must be what they were."""
        outputs = launched.outputs
        again = tokens[len(outputs.decoding) + len(outputs.starting) :]
        for drawn, token in zip(outputs.replayed, again, strict=True):
            known = drawn.sequence.tokens[drawn.sequence.num_prompt + drawn.position]
            self.counts["replay_mismatches"] += token != known
        self.counts["replayed_tokens"] += len(outputs.replayed)

    # What happens to a sequence

    def acquire(self, sequence: Sequence) -> bool:
        """Give a sequence the adapter it names; if it cannot be had now, let it wait and say False.

        Nobody takes room that a sequence needs which came before and waits: an adapter always in use would keep
        others out for ever.
        """
        name = sequence.request.adapter
        if name is None:
            return True
        must_wait = self.roster.is_before(sequence) or not self.shelf.has_room_for(name, self.roster.asked)
        if must_wait or not self.shelf.is_resident(name):
            self.roster.park(name, sequence)
            return False
        self.hold(name, sequence)
        return True

    def hold(self, name: str, sequence: Sequence) -> None:
        sequence.adapter_slot, version = self.shelf.acquire(name)
        sequence.root = self.root_of(sequence.request, version)

    def fork(self, parent: Sequence, choice: int) -> Sequence:
        child = self.scheduler.fork(parent, choice)
        self.roster.join(child)
        if child.request.adapter is not None and child.adapter_slot is not None:
            self.shelf.share(child.adapter_slot)
        return child

    def end(self, sequence: Sequence, reason: FinishReason, message: str | None = None) -> None:
        """A sequence ends without a further token."""
        for choice in sequence.choices:
            self.tell(ChoiceEnded(sequence.request.id, choice, reason, message))
        self.close(sequence)

    def close(self, sequence: Sequence) -> None:
        """Free what a sequence holds."""
        if not self.roster.forget_parked(sequence):
            self.scheduler.finish(sequence)
        sequence.status = Status.FINISHED
        if sequence.adapter_slot is not None:
            self.shelf.release(sequence.adapter_slot)
            sequence.adapter_slot = None
        if self.roster.leave(sequence):
            self.counts["finished_requests"] += 1

    def tell(self, event: Event) -> None:
        self._outbox.append(event)

    def tell_started(self, sequence: Sequence) -> None:
        self.counts["cached_tokens"] += sequence.num_shared
        if not sequence.has_started:
            sequence.has_started = True
            self.tell(Started(sequence.request.id, min(sequence.num_shared, sequence.num_prompt)))

    def grant_adapters(self) -> None:
        """Those who wait for an adapter get it, the first one first: it is here, or it is asked for."""
        while (name := self.next_adapter()) is not None:
            if self.shelf.is_resident(name):
                self.let_on(name)
            else:
                self.roster.mark_asked(name)
                self.tell(AdapterWanted(name))

    def next_adapter(self) -> str | None:
        """The adapter that is waited for longest, if there is room for it beside those in use and on their way."""
        name = self.roster.next_wanted()
        return name if name is not None and self.shelf.has_room_for(name, self.roster.asked) else None

    def let_on(self, name: str) -> None:
        """Who waited for an adapter holds it from now on, so that it cannot be dropped before they ran."""
        for sequence in self.roster.unpark(name):
            self.hold(name, sequence)
            self.scheduler.add(sequence)

    def root_of(self, request: Request, version: str | None) -> bytes:
        return root_digest(self.model.fingerprint, version, request.tenant)

    def stats(self) -> EngineStats:
        """What the engine is doing and has done."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting + self.roster.num_parked,
            waiting_tokens=scheduler.queue.num_tokens,
            num_blocks=pool.num_blocks - 1,
            used_blocks=pool.num_used,
            remembered_blocks=pool.num_remembered,
            block_size=pool.block_size,
            adapters=self.shelf.names,
            resident_adapters=self.shelf.resident,
            adapter_bytes=self.shelf.num_bytes,
            preemptions=scheduler.num_preemptions,
            **self.counts,
        )

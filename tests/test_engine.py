"""engine/engine.py: a request's text and logits are the same whatever happens around it and to it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from engine.engine import MAX_LOGITS_BYTES, Engine
from engine.event import TokenLogprob
from engine.kernels.portable import PortableKernels
from engine.kernels.table import Kernels
from engine.outputs import Outputs
from engine.request import Request
from engine.rows import Rows
from tests.engines import (
    BYTES,
    Answer,
    LogitsLog,
    ask,
    check_invariants,
    collect,
    made_up,
    random_adapter,
    record_logits,
    run,
    serve,
    serve_one,
    tiny_engine,
    tiny_model,
)
from tests.tiny import FAMILIES

FEATURES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.2, "seed": 7, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "choices": {"temperature": 1.5, "seed": 2**63 + 11, "n": 4},
    "stop strings": {"temperature": 1.4, "seed": 5, "stop": tuple("abcdefghijklmno"), "max_tokens": 24},
    "logprobs": {"temperature": 0.8, "seed": 3, "logprobs": 4},
    "penalties": {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    "least length": {"min_tokens": 8, "stop_token_ids": tuple(range(0, 256, 2))},
    "biases": {"temperature": 1.0, "seed": 1, "logit_bias": {5: 4.0, 9: -100.0}, "banned_token_ids": (1, 2, 3)},
    "allowed": {"temperature": 1.0, "seed": 9, "allowed_token_ids": (3, 17, 40, 41, 99)},
}


PORTABLE = ("greedy",)  # ten times as slow


def column_of(feature: str) -> type[Kernels] | None:
    """What happens around a request is the same for all columns: the slow one is asked of every scene, but not all."""
    return PortableKernels if feature in PORTABLE else None


def strangers(count: int) -> list[Request]:
    """Requests of all kinds and lengths."""
    features = list(FEATURES.values())
    made = []
    for index in range(count):
        how = {**features[index % len(features)], "n": 1, "max_tokens": 3 + index % 17}
        made.append(ask(f"stranger {index}", 1 + (index * 13) % 40, tenant=f"t{index % 3}", **how))
    return made


def assert_same(answer: Answer, wanted: Answer) -> None:
    assert answer.choices == wanted.choices
    assert answer.reasons == wanted.reasons
    assert_same_scores(answer.logprobs, wanted.logprobs)


def assert_same_scores(found: Mapping[int, list[TokenLogprob]], wanted: Mapping[int, list[TokenLogprob]]) -> None:
    assert found.keys() == wanted.keys()
    for choice, records in wanted.items():
        assert [record.token for record in found[choice]] == [record.token for record in records]
        for one, other in zip(found[choice], records, strict=True):
            assert [token for token, _ in one.top] == [token for token, _ in other.top]
            np.testing.assert_allclose([v for _, v in one.top], [v for _, v in other.top], atol=2e-5)
            assert abs(one.logprob - other.logprob) < 2e-5


def assert_same_logits(found: LogitsLog, wanted: LogitsLog, name: str) -> None:
    keys = [key for key in wanted if key[0] == name]
    assert keys and set(keys) <= set(found)
    for key in keys:
        one, other = np.array(found[key]), np.array(wanted[key])
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max(), key


def told(request: Request, **options: Any) -> tuple[Answer, LogitsLog]:
    """What a request is answered alone in a fresh engine."""
    engine = tiny_engine(**options)
    log = record_logits(engine)
    return serve_one(engine, request), log


def request_of(feature: str, prompt: int = 21, **more: Any) -> Request:
    return ask("subject", prompt, **{**FEATURES[feature], **more})


@pytest.mark.parametrize("feature", FEATURES)
def test_alone_is_as_in_a_batch_of_32_strangers(feature: str) -> None:
    request = request_of(feature)
    wanted, logits = told(request, column=column_of(feature))
    engine = tiny_engine(column=column_of(feature), max_sequences=48)
    log = record_logits(engine)
    answers = serve(engine, [*strangers(16), request, *strangers(33)[17:]])
    assert_same(answers["subject"], wanted)
    assert_same_logits(log, logits, "subject")


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_is_as_in_a_batch_in_every_family(family: str) -> None:
    changes = {"sliding_window": 12} if family == "mistral" else {}
    model, request = tiny_model(family, **changes), request_of("greedy", 40)
    wanted, logits = told(request, model=model, column=PortableKernels)
    engine = tiny_engine(model=model, column=PortableKernels, max_sequences=8, max_batch_tokens=9)
    log = record_logits(engine)
    answers = serve(engine, [*strangers(5), request])
    assert_same(answers["subject"], wanted)
    assert_same_logits(log, logits, "subject")


@pytest.mark.parametrize("feature", FEATURES)
def test_a_prompt_in_chunks_of_seven_is_as_in_one(feature: str) -> None:
    request = request_of(feature, 38)
    wanted, logits = told(request, column=column_of(feature))
    answer, log = told(request, column=column_of(feature), max_batch_tokens=7, max_sequences=4)
    assert_same(answer, wanted)
    assert_same_logits(log, logits, "subject")


@pytest.mark.parametrize("feature", FEATURES)
def test_a_prompt_found_in_the_prefix_cache_is_as_one_read(feature: str) -> None:
    request = request_of(feature, 38)
    wanted, logits = told(request, column=column_of(feature))
    engine = tiny_engine(column=column_of(feature))
    serve_one(engine, replace(request, id="before"))
    log = record_logits(engine)
    answer = serve_one(engine, request)
    assert answer.cached_tokens == [32]
    assert_same(answer, wanted)
    assert_same_logits(log, logits, "subject")


@pytest.mark.parametrize("feature", ["greedy", "choices", "penalties", "logprobs"])
def test_aborted_neighbours_disturb_nobody(feature: str) -> None:
    request = request_of(feature)
    wanted, logits = told(request, column=column_of(feature))
    engine = tiny_engine(column=column_of(feature), max_sequences=16)
    log, answers = record_logits(engine), dict[str, Answer]()
    others = strangers(20)
    for other in [*others[:8], request, *others[8:]]:
        engine.add(other)
    while engine.has_work:
        collect(engine.step(), answers)
        if others:
            engine.abort(others.pop().id)
        check_invariants(engine)
    assert_same(answers["subject"], wanted)
    assert_same_logits(log, logits, "subject")


@pytest.mark.parametrize("feature", FEATURES)
def test_a_preempted_request_is_answered_as_an_undisturbed_one(feature: str) -> None:
    request = request_of(feature, 14, max_tokens=30)
    wanted, logits = told(request, column=column_of(feature))
    engine = tiny_engine(column=column_of(feature), num_blocks=18, block_size=4)
    log = record_logits(engine)
    elders = [ask(f"elder {index}", 9, max_tokens=40) for index in range(2)]
    answers = serve(engine, [*elders, request])
    assert engine.stats().preemptions > 0
    assert engine.stats().replayed_tokens > 0 or len(wanted.tokens) < 20
    assert engine.stats().replay_mismatches == 0
    assert_same(answers["subject"], wanted)
    assert_same_logits(log, logits, "subject")


@pytest.mark.parametrize("feature", FEATURES)
def test_resumed_at_every_position_is_as_never_interrupted(feature: str) -> None:
    request = request_of(feature)
    wanted, _ = told(request, column=column_of(feature))
    longest = max(map(len, wanted.choices.values()))
    assert longest > 4
    cuts = range(longest + 1)
    engine = tiny_engine(column=column_of(feature), max_sequences=64, num_blocks=400)
    for cut in cuts:  # each a tenant of its own, so that nothing is found in the cache
        resumed = tuple(tuple(tokens[:cut]) for _, tokens in sorted(wanted.choices.items()))
        engine.add(replace(request, id=f"cut {cut}", tenant=f"{cut}", resumed=resumed))
    answers = collect(run(engine), {})
    for cut in cuts:
        answer = answers[f"cut {cut}"]
        assert answer.reasons == wanted.reasons
        for choice, tokens in wanted.choices.items():
            assert answer.choices.get(choice, []) == tokens[cut:]
        rest = {choice: records[cut:] for choice, records in wanted.logprobs.items() if records[cut:]}
        assert_same_scores(answer.logprobs, rest)
    stats = engine.stats()
    assert stats.replay_mismatches == 0
    assert stats.replayed_tokens == sum(
        min(cut, len(tokens)) for cut in cuts for tokens in wanted.choices.values() if cut < len(tokens)
    )


@pytest.mark.parametrize("how", [{}, {"prompt_logprobs": 2}, {"prompt_logprobs": 2, "max_tokens": 0}])
def test_a_step_has_no_more_rows_of_logits_than_it_may_and_all_is_as_without_that_limit(how: dict[str, Any]) -> None:
    requests = [ask(f"r{index}", 60 + index, **{"max_tokens": 40, "logprobs": 1, **how}) for index in range(3)]
    undisturbed = serve(tiny_engine(), requests)
    wanted = {name: answer.choices.get(0, []) for name, answer in undisturbed.items()}
    again = [replace(request, resumed=(tuple(wanted[request.id][:33]),)) for request in requests]
    engine = tiny_engine(max_batch_tokens=256)
    engine.scheduler.max_logits = 9
    launch, most = engine.runner.launch, 0

    def watched(rows: Rows, chunks: Any, copies: Any, outputs: Outputs, stack: Any) -> Any:
        nonlocal most
        most = max(most, outputs.num_rows - len(outputs.decoding))
        return launch(rows, chunks, copies, outputs, stack)

    engine.runner.launch = watched  # type: ignore[method-assign]
    answers = serve(engine, again)
    assert most == 9
    assert engine.stats().replayed_tokens == sum(min(33, len(tokens)) for tokens in wanted.values())
    assert engine.stats().replay_mismatches == 0
    for request in requests:
        answer, whole = answers[request.id], undisturbed[request.id]
        assert answer.choices.get(0, []) == wanted[request.id][33:]
        if not request.sampling.max_tokens:
            assert answer.prompt_logprobs is not None and whole.prompt_logprobs is not None
            assert_same_scores({0: list(answer.prompt_logprobs)}, {0: list(whole.prompt_logprobs)})


def test_a_large_vocabulary_s_logits_stay_below_the_bytes_that_a_step_may_have() -> None:
    model = tiny_model()
    large = replace(model, config=replace(model.config, vocab_size=151_936))
    scheduler = tiny_engine(model=large, max_batch_tokens=512).scheduler
    assert 64 < scheduler.max_logits < 512 and scheduler.max_logits * 151_936 * 4 <= MAX_LOGITS_BYTES


def test_a_request_without_a_seed_has_one_that_its_id_determines() -> None:
    request = ask("some id", 9, temperature=1.0, max_tokens=20)
    wanted, _ = told(request)
    resumed = replace(request, resumed=(tuple(wanted.tokens[:7]),))
    assert told(resumed)[0].tokens == wanted.tokens[7:]
    assert told(replace(request, id="another"))[0].tokens != wanted.tokens


def test_a_log_that_is_not_ours_is_counted_as_mismatches() -> None:
    request = ask("r", 9)
    wanted, _ = told(request)
    wrong = [(token + 1) % 256 for token in wanted.tokens[:4]]
    engine = tiny_engine()
    serve_one(engine, replace(request, resumed=(tuple(wrong),)))
    assert engine.stats().replayed_tokens == 4
    assert engine.stats().replay_mismatches >= 1


def test_every_token_is_the_best_after_the_penalties_of_all_tokens_before_it() -> None:
    how = {"repetition_penalty": 1.7, "presence_penalty": 0.8, "frequency_penalty": 0.9, "max_tokens": 40}
    more = {"logit_bias": {7: 9.0, 8: 9.0}, "min_tokens": 12, "stop_token_ids": tuple(range(200, 256))}
    answer, log = told(ask("subject", [5, 250, 7, 7, 50, 147], **how, **more))
    assert len(answer.tokens) >= 12
    assert any(one == other for one, other in pairwise(answer.tokens))
    for position, token in enumerate(answer.tokens):
        logits, before = np.array(log["subject", 0, position], np.float64), answer.tokens[:position]
        for other in {5, 250, 7, 50, 147, *before}:
            logits[other] *= 1.7 if logits[other] < 0 else 1 / 1.7
        for other in set(before):
            logits[other] -= 0.8 + 0.9 * before.count(other)
        logits[[7, 8]] += 9
        if position < 12:
            logits[200:] = -np.inf
        assert token == logits.argmax()


def test_prompt_logprobs_are_told_once_and_are_the_same_in_chunks_preempted_and_for_several_choices() -> None:
    request = ask("r", 30, prompt_logprobs=3, n=2, temperature=1.0, seed=1, max_tokens=20)
    wanted, _ = told(request)
    assert wanted.prompt_logprobs is not None and len(wanted.prompt_logprobs) == 29
    assert [record.token for record in wanted.prompt_logprobs] == list(request.prompt[1:])
    engines = [
        tiny_engine(max_batch_tokens=7, max_sequences=4),
        tiny_engine(num_blocks=18, block_size=4, max_batch_tokens=11, max_sequences=8),
        tiny_engine(),
    ]
    serve_one(engines[2], replace(request, id="before"))  # its blocks are in the cache now
    for engine in engines:
        elders = [ask("elder", 9, max_tokens=40)] if engine.stats().num_blocks == 17 else []
        answer = serve(engine, [*elders, request])["r"]
        assert answer.prompt_logprobs is not None
        assert_same(answer, wanted)
        assert_same_scores({0: list(answer.prompt_logprobs)}, {0: list(wanted.prompt_logprobs)})
    assert engines[1].stats().preemptions > 0


@pytest.mark.parametrize("num_choices", [1, 3])
def test_a_prompt_can_be_scored_without_an_answer(num_choices: int) -> None:
    answer, _ = told(ask("r", 40, max_tokens=0, prompt_logprobs=1, n=num_choices), max_batch_tokens=16, max_sequences=4)
    assert answer.prompt_logprobs is not None and len(answer.prompt_logprobs) == 39
    assert answer.choices == {}
    assert answer.reasons == dict.fromkeys(range(num_choices), "length")


def test_scores_that_were_not_told_before_a_crash_are_told_after_it() -> None:
    request = ask("r", 12, prompt_logprobs=1)
    wanted, _ = told(request)
    assert told(replace(request, resumed=((),)))[0].prompt_logprobs == wanted.prompt_logprobs
    assert told(replace(request, resumed=((wanted.tokens[0],),)))[0].prompt_logprobs is None


def test_an_adapter_beside_another_is_as_alone() -> None:
    model = tiny_model()
    adapters = {"x": random_adapter(model, 4, 1), "y": random_adapter(model, 7, 2, up_proj=0, q_proj=3)}

    def engine() -> Engine:
        made = tiny_engine(column=PortableKernels, max_sequences=16)
        for name, adapter in adapters.items():
            made.attach(name, adapter)
        return made

    requests = [ask(f"with {name}", made_up("same", 19), adapter=name) for name in ("x", "y", None)]
    together = engine()
    log = record_logits(together)
    answers = serve(together, [*strangers(5), *requests])
    assert len({tuple(answers[request.id].tokens) for request in requests}) == 3
    for request in requests:
        alone = engine()
        logits = record_logits(alone)
        assert_same(answers[request.id], serve_one(alone, request))
        assert_same_logits(log, logits, request.id)


def test_the_plain_answer_is_the_same_with_and_without_an_adapter_in_the_batch() -> None:
    model, request = tiny_model(), request_of("greedy")
    wanted, logits = told(request)
    engine = tiny_engine()
    engine.attach("x", random_adapter(model))
    log = record_logits(engine)
    answers = serve(engine, [ask("other", 30, adapter="x"), request])
    assert_same(answers["subject"], wanted)
    assert_same_logits(log, logits, "subject")


def test_another_adapter_or_tenant_finds_nothing_in_the_prefix_cache() -> None:
    model, engine = tiny_model(), tiny_engine()
    engine.attach("x", random_adapter(model))
    prompt = made_up("prompt", 40)

    def cached(name: str, **who: Any) -> list[int]:
        return serve_one(engine, ask(name, prompt, **who)).cached_tokens

    assert cached("first") == [0]
    assert cached("same") == [32]
    assert cached("adapter", adapter="x") == [0]
    assert cached("adapter again", adapter="x") == [32]
    assert cached("tenant", tenant="other") == [0]
    engine.attach("x", random_adapter(model, seed=5))
    assert cached("new version", adapter="x") == [0]


def test_keys_and_values_in_eight_bits_are_as_independent_of_what_happens_around() -> None:
    request = request_of("greedy", 38, max_tokens=24)
    wanted, logits = told(request, cache_dtype="int8")
    crowd = [*strangers(6), ask("elder", 40, max_tokens=40)]
    for options in ({"max_batch_tokens": 7, "max_sequences": 4}, {"num_blocks": 40, "block_size": 4}):
        engine = tiny_engine(cache_dtype="int8", **options)
        log = record_logits(engine)
        answers = serve(engine, [*crowd, request])
        assert_same(answers["subject"], wanted)
        assert_same_logits(log, logits, "subject")
    resumed = replace(request, resumed=(tuple(wanted.tokens[:9]),))
    assert told(resumed, cache_dtype="int8")[0].tokens == wanted.tokens[9:]


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_a_request_gets_as_many_tokens_as_it_asks_for(max_tokens: int) -> None:
    wanted, _ = told(ask("r", 9))
    answer, _ = told(ask("r", 9, max_tokens=max_tokens))
    assert answer.tokens == wanted.tokens[:max_tokens]
    assert answer.reasons == {0: "length"}


def test_an_answer_ends_with_the_token_that_ends_it() -> None:
    wanted, _ = told(ask("r", 9))
    end = wanted.tokens[5]
    answer, _ = told(ask("r", 9, stop_token_ids=(end,)))
    assert answer.tokens == wanted.tokens[: wanted.tokens.index(end) + 1]
    assert answer.reasons == {0: "stop"}
    model = tiny_model()
    ending = replace(model, config=replace(model.config, eos_token_ids=(end,)))
    assert told(ask("r", 9, ignore_eos=False), model=ending)[0] == answer
    assert told(ask("r", 9, ignore_eos=True), model=ending)[0].tokens == wanted.tokens


def test_a_vocabulary_is_read_when_stop_strings_first_need_it_and_once() -> None:
    reads: list[str] = []
    engine = tiny_engine(vocabulary=lambda: reads.append("read") or BYTES)
    letters = tuple(range(97, 123))
    plain = serve_one(engine, ask("a", allowed_token_ids=letters)).tokens
    assert not reads
    stops = [ask("a", allowed_token_ids=letters, stop=(chr(plain[2]),)), ask("b", stop=("!",))]
    stopped = serve(engine, stops)["a"].tokens
    assert reads == ["read"] and stopped == plain[: plain.index(plain[2]) + 1]


def test_an_answer_ends_with_the_token_that_completes_a_stop_string() -> None:
    wanted, _ = told(ask("r", 9, allowed_token_ids=tuple(range(97, 123))))
    text = bytes(wanted.tokens).decode()
    stop = text[4:7]
    answer, _ = told(ask("r", 9, allowed_token_ids=tuple(range(97, 123)), stop=("!", stop)))
    assert bytes(answer.tokens).decode() == text[: text.index(stop) + 3]
    assert answer.reasons == {0: "stop"}


def test_a_stop_string_that_comes_before_the_least_length_ends_nothing() -> None:
    how: dict[str, Any] = {"allowed_token_ids": (97,), "stop": ("aaa",), "max_tokens": 9}
    lengths = {least: len(told(ask("r", 9, min_tokens=least, **how))[0].tokens) for least in (0, 2, 3, 5, 9)}
    assert lengths == {0: 3, 2: 3, 3: 4, 5: 6, 9: 9}
    resumed = told(ask("r", 9, min_tokens=5, resumed=((97,) * 4,), **how))[0]
    assert (len(resumed.tokens), resumed.reasons) == (2, {0: "stop"})


def test_work_is_counted_as_it_was_done() -> None:
    engine = tiny_engine()
    answers = serve(engine, [ask("a", 20, max_tokens=7), ask("b", 5, max_tokens=9, stop_token_ids=tuple(range(256)))])
    stats = engine.stats()
    assert stats.generated_tokens == sum(len(answer.tokens) for answer in answers.values()) == 8
    assert stats.prompt_tokens == 25
    assert stats.finished_requests == 2
    assert (stats.used_blocks, stats.num_running, stats.num_waiting) == (0, 0, 0)

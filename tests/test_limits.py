"""engine/limits.py: each bad request gets its own sentence, before anything is scheduled, and disturbs nobody."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.options import EngineOptions
from engine.refusal import BadRequest, PromptTooLong, Refusal, UnknownAdapter, shown
from engine.request import Request, Sampling
from engine.vocabulary import Vocabulary
from tests.engines import (
    Answer,
    ask,
    check_invariants,
    collect,
    paper_engine,
    run,
    serve,
    serve_one,
    tiny_engine,
    tiny_model,
)

VOCABULARY = 256
CONTEXT = 512

# what is wrong, the field at fault, a part of the sentence
SETTINGS: list[tuple[dict[str, Any], str, str]] = [
    *[({"n": value}, "n", "n must be a whole number from 1 to 128") for value in (10**9, 0, -1, 1.5, "3", True, None)],
    ({"n": 100}, "n", "n is 100; this engine runs 64 at once"),
    *[({"max_tokens": value}, "max_tokens", "whole number") for value in (-1, 10**12, 10**5000, 2.0, "9", None)],
    ({"max_tokens": 0}, "max_tokens", "max_tokens 0 answers nothing"),
    ({"max_tokens": 503}, "prompt", "the prompt has 10 tokens and 503 more are wanted"),
    *[
        ({"temperature": value}, "temperature", "temperature must be a number from 0 to 100")
        for value in (-1, -1e-300, math.nan, math.inf, -math.inf, 1e300, 10**400, "hot", None, True, [1.0])
    ],
    *[({"top_p": value}, "top_p", "above 0 and up to 1") for value in (0, 0.0, 1.01, -0.5, math.nan)],
    *[({"top_k": value}, "top_k", "top_k must be a whole number") for value in (-5, 10**9, 2.5, math.nan)],
    *[({"min_p": value}, "min_p", "min_p must be a number from 0 to 1") for value in (2, -0.1, math.nan)],
    *[({"min_tokens": value}, "min_tokens", "whole number") for value in (-1, 2**40, 0.5)],
    *[
        ({"repetition_penalty": value}, "repetition_penalty", "a number from 0.01")
        for value in (0, -1, 1e-40, math.nan)
    ],
    *[({"presence_penalty": value}, "presence_penalty", "a number from -100") for value in (1e9, -1e9, math.nan)],
    *[({"frequency_penalty": value}, "frequency_penalty", "a number from -100") for value in (1e9, -1e9, math.nan)],
    *[({"logprobs": value}, "logprobs", "whole number from 0 to 20") for value in (10**6, -1, 1.0, True)],
    *[({"prompt_logprobs": value}, "prompt_logprobs", "whole number from 0 to 20") for value in (10**6, -1)],
    *[({"seed": value}, "seed", "seed must be a whole number") for value in (-(2**70), 2**64, -1, 1.5, "1")],
    ({"stop": tuple(map(str, range(1000)))}, "stop", "stop takes at most 16 strings; got 1000"),
    ({"stop": ("x" * 2**20,)}, "stop", "a stop string may have 256 bytes; got 1048576"),
    ({"stop": ("",)}, "stop", "not empty"),
    ({"stop": ("\ud800",)}, "stop", "valid Unicode"),
    ({"stop": ("\ud800" * 300,)}, "stop", "valid Unicode"),
    ({"stop": (b"x",)}, "stop", "must be a string"),
    *[({"stop": value}, "stop", "stop must be a list") for value in ("ab", 5, None)],
    *[({"stop_token_ids": (value,)}, "stop_token_ids", "run from 0 to 255") for value in (256, -1, True, "a", 2**70)],
    ({"stop_token_ids": (999,), "min_tokens": 4}, "stop_token_ids", "stop_token_ids has 999"),
    ({"stop_token_ids": tuple(range(256)) * 5}, "stop_token_ids", "at most 1024"),
    ({"stop_token_ids": 3}, "stop_token_ids", "must be a list"),
    ({"logit_bias": dict.fromkeys(range(10**6), 1.0)}, "logit_bias", "at most 1024 token ids; got 1000000"),
    *[({"logit_bias": {key: 1.0}}, "logit_bias", "token ids run from 0 to 255") for key in (256, -1, "abc", "5", None)],
    *[({"logit_bias": {1: value}}, "logit_bias", "logit_bias must be a number") for value in (math.nan, 101, "1")],
    ({"logit_bias": [1, 2]}, "logit_bias", "must map token ids to numbers"),
    *[({"banned_token_ids": value}, "banned_token_ids", "") for value in ((256,), (-1,), 7, (1,) * 2000)],
    ({"allowed_token_ids": ()}, "allowed_token_ids", "leave no token to choose"),
    ({"allowed_token_ids": (1, 2), "banned_token_ids": (2, 1)}, "allowed_token_ids", "leave no token to choose"),
    ({"banned_token_ids": tuple(range(256))}, "allowed_token_ids", "leave no token to choose"),
    ({"allowed_token_ids": (1,) * 257}, "allowed_token_ids", "at most 256"),
    *[({"allowed_token_ids": value}, "allowed_token_ids", "") for value in ((256,), "12", 4)],
    (
        {"allowed_token_ids": (1, 2), "stop_token_ids": (1, 2), "min_tokens": 1},
        "min_tokens",
        "min_tokens forbids an ending, and nothing else is left",
    ),
    (
        {"banned_token_ids": tuple(range(255)), "stop_token_ids": (255,), "min_tokens": 1},
        "min_tokens",
        "min_tokens forbids an ending, and nothing else is left",
    ),
    ({"ignore_eos": "no"}, "ignore_eos", "true or false"),
]

PROMPTS: list[tuple[Any, str]] = [
    ((), "the prompt is empty"),
    ((1, 256), "the prompt has 256; token ids run from 0 to 255"),
    ((-1,), "the prompt has -1"),
    ((True,), "the prompt has True"),
    ((1.0,), "the prompt has 1.0"),
    (("1",), "the prompt has '1'"),
    (((1, 2),), "the prompt has (1, 2)"),
    ((10**5000,), "the prompt has a number of 16610 bits"),
    ("abc", "the prompt must be a list of token ids"),
    (None, "the prompt must be a list of token ids"),
    ((1,) * 513, "the prompt has 513 tokens"),
    ((1,) * 10**6, "the prompt has 1000000 tokens"),
]

OTHERS: list[tuple[dict[str, Any], str, str]] = [
    ({"id": ""}, "id", "id must be a string of 1 to 256 bytes"),
    ({"id": "x" * 257}, "id", "id must be a string of 1 to 256 bytes"),
    ({"id": 7}, "id", "id must be a string"),
    ({"id": "\ud800"}, "id", "id must be a string"),
    ({"tenant": None}, "tenant", "tenant must be a string"),
    ({"tenant": "x" * 10**6}, "tenant", "tenant must be a string"),
    ({"adapter": 3}, "adapter", "adapter must be a string"),
    ({"adapter": ""}, "adapter", "adapter must be a string of 1"),
    ({"adapter": "../../etc/passwd"}, "adapter", "no adapter '../../etc/passwd' is attached; attached are none"),
    ({"priority": 17}, "priority", "priority must be a whole number from -16 to 16"),
    ({"priority": "high"}, "priority", "priority must be a whole number"),
    ({"resumed": ((1,), (2,))}, "resumed", "resumed has 2 choices; n is 1"),
    ({"resumed": ((1,) * 13,)}, "resumed", "resumed has 13 tokens; max_tokens is 12"),
    ({"resumed": ((256,),)}, "resumed", "resumed has 256"),
    ({"resumed": (1,)}, "resumed", "resumed must be a list of token ids for each choice"),
    ({"resumed": 5}, "resumed", "resumed must be a list"),
    ({"sampling": None}, "sampling", "sampling must be a Sampling"),
]


def refuse(request: Request) -> Refusal:
    """The refusal of a request; nothing of it is left behind."""
    engine = tiny_engine()
    with pytest.raises(Refusal) as caught:
        engine.add(request)
    check_invariants(engine)
    assert not engine.has_work
    message = caught.value.message
    assert len(message) <= 200 and "\n" not in message
    return caught.value


def named(cases: list[Any]) -> list[Any]:
    return [pytest.param(*case, id=f"{index}-{shown(case[0])[:40]}") for index, case in enumerate(cases)]


@pytest.mark.parametrize(("settings", "param", "sentence"), named(SETTINGS))
def test_a_bad_setting_is_refused_with_its_own_sentence(settings: dict[str, Any], param: str, sentence: str) -> None:
    refusal = refuse(ask("r", **settings))
    assert refusal.param == param
    assert sentence in refusal.message


@pytest.mark.parametrize(("prompt", "sentence"), named(PROMPTS))
def test_a_bad_prompt_is_refused_with_its_own_sentence(prompt: Any, sentence: str) -> None:
    refusal = refuse(Request("r", prompt, Sampling(max_tokens=12)))
    assert refusal.param == "prompt"
    assert sentence in refusal.message
    assert isinstance(refusal, PromptTooLong) == ("tokens and" in refusal.message)


@pytest.mark.parametrize(("fields", "param", "sentence"), named(OTHERS))
def test_a_bad_field_is_refused_with_its_own_sentence(fields: dict[str, Any], param: str, sentence: str) -> None:
    refusal = refuse(Request(**{"id": "r", "prompt": (1, 2), "sampling": Sampling(max_tokens=12), **fields}))
    assert refusal.param == param
    assert sentence in refusal.message
    assert isinstance(refusal, UnknownAdapter) == sentence.startswith("no adapter")


OPTIONS: list[tuple[dict[str, Any], str, str]] = [
    *[
        ({name: value}, name, f"{name} must be a whole number from 1 to")
        for name in ("cache_bytes", "block_size", "max_batch_tokens", "max_sequences", "max_context")
        for value in (-1, 0, 1.5, "16", True)
    ],
    ({"max_adapter_bytes": -1}, "max_adapter_bytes", "max_adapter_bytes must be a whole number from 0 to"),
    ({"max_sequences": 10**12}, "max_sequences", "max_sequences must be a whole number from 1 to"),
    ({"max_sequences": None}, "max_sequences", "max_sequences must be a whole number from 1 to"),
    ({"cache_dtype": "float8"}, "cache_dtype", "cache_dtype must be one of float32, float16, bfloat16, int8, None"),
    ({"cache_dtype": ["int8"]}, "cache_dtype", "; got ['int8']"),
    *[({"expand": value}, "expand", "expand must be one of auto, always, never") for value in ("no", None, True)],
]


@pytest.mark.parametrize(("options", "param", "sentence"), named(OPTIONS))
def test_a_bad_option_is_refused_with_its_own_sentence(options: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        EngineOptions(**options)
    assert caught.value.param == param
    assert sentence in caught.value.message and len(caught.value.message) <= 200


def test_the_least_options_are_an_engine_and_fewer_bytes_than_a_block_has_are_refused() -> None:
    tiny_engine(num_blocks=2, block_size=1, max_batch_tokens=1, max_sequences=1, max_context=1, max_adapter_bytes=0)
    with pytest.raises(BadRequest, match="cache_bytes is 8192; this model needs 16384 for blocks of 16 tokens"):
        tiny_engine(num_blocks=1)


def test_refused_requests_leave_those_who_run_undisturbed() -> None:
    wanted = serve_one(tiny_engine(), ask("runs", max_tokens=40))
    engine, answers = tiny_engine(), dict[str, Answer]()
    engine.add(ask("runs", max_tokens=40))
    for settings, _, _ in SETTINGS:
        with pytest.raises(Refusal):
            engine.add(ask("r", **settings))
        collect(engine.step(), answers)
    assert collect(run(engine), answers) == {"runs": wanted}
    assert engine.stats().finished_requests == 1


def test_two_requests_of_one_id_do_not_run_at_once() -> None:
    engine = tiny_engine()
    engine.add(ask("r"))
    with pytest.raises(BadRequest, match="a request with the id 'r' is running already"):
        engine.add(ask("r"))
    assert len(serve(engine, [ask("s")])) == 2
    engine.add(ask("r"))


def test_a_prompt_that_the_cache_can_never_hold_is_refused() -> None:
    engine = paper_engine(num_blocks=5, block_size=4)
    engine.add(ask("fits", [1] * 10, max_tokens=6))
    with pytest.raises(PromptTooLong, match="may have 16"):
        engine.add(ask("does not", [1] * 10, max_tokens=7))


def test_stop_strings_without_a_vocabulary_are_refused() -> None:
    with pytest.raises(BadRequest, match="stop strings need a vocabulary"):
        paper_engine().add(ask("r", [1], stop=("a",)))


def test_a_token_beyond_the_vocabulary_s_text_is_text_of_no_bytes() -> None:
    engine = tiny_engine()
    engine.vocabulary = Vocabulary(tuple(bytes([value]) for value in range(200)))  # the model's is padded to 256
    request = ask("r", stop=("zz",), allowed_token_ids=(255,))
    assert serve_one(engine, request).tokens == [255] * 12


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e-300},
        {"temperature": 1e-40, "min_p": 1.0},
        {"temperature": 100.0, "top_p": 1e-300},
        {"temperature": 1.0, "top_k": 2**24, "repetition_penalty": 0.01},
        {"temperature": 1.0, "presence_penalty": -100.0, "frequency_penalty": 100.0, "repetition_penalty": 100.0},
        {"temperature": 1.0, "logit_bias": dict.fromkeys(range(256), -100.0)},
        {"temperature": 1.0, "logit_bias": {3: 100.0}, "banned_token_ids": (3,)},
        {"temperature": 1.0, "allowed_token_ids": (7,), "logit_bias": {7: -100.0}},
        {"temperature": 1.0, "min_tokens": 12, "stop_token_ids": tuple(range(255))},
        {"temperature": 0.0, "logprobs": 20, "prompt_logprobs": 20, "banned_token_ids": tuple(range(250))},
    ],
)
def test_the_utmost_settings_that_are_allowed_give_tokens_that_are_allowed(settings: dict[str, Any]) -> None:
    tokens = serve_one(tiny_engine(), ask("r", **settings)).tokens
    allowed = set(settings.get("allowed_token_ids", range(256))) - set(settings.get("banned_token_ids", ()))
    assert len(tokens) == 12 and set(tokens) <= allowed
    if "min_tokens" in settings:
        assert set(tokens) == {255}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.integers(0, 300), inner, max_size=3)
    ),
    max_leaves=5,
)
ENGINE = tiny_engine(model=tiny_model())


@given(st.dictionaries(st.sampled_from(Sampling.__slots__), ANYTHING, max_size=4), ANYTHING, ANYTHING, ANYTHING)
def test_whatever_stands_in_the_fields_is_taken_or_refused(
    settings: dict[str, Any], prompt: Any, resumed: Any, tenant: Any
) -> None:
    for request in (
        Request("r", (1, 2), Sampling(**settings)),
        Request("r", prompt, Sampling(max_tokens=3), resumed=resumed, tenant=tenant),
    ):
        try:
            ENGINE.add(request)
        except Refusal as refusal:
            assert len(refusal.message) <= 200
        else:
            ENGINE.abort("r")
            ENGINE.step()


def test_shown_values_are_short() -> None:
    for value in ("x" * 10**6, 10**5000, [[[[1] * 100] * 100] * 100], b"\0" * 10**6, object()):
        assert len(shown(value)) <= 60

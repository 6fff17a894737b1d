"""What a client reads, and when an answer stops, is a pure fold over its tokens: live or replayed, for every k."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.answer import AnswerState
from engine.vocabulary import Vocabulary
from tests.engines import BYTES, ask, collect, run, serve_one, tiny_engine

THINKING = replace(BYTES, splits_thoughts=True, strips_space=True)
STOPS = st.lists(st.text("ab<é", min_size=1, max_size=3), max_size=4).map(tuple)
TOKENS = st.lists(st.sampled_from(b"aab<think>/ \n\xc3\xa9\xff"), max_size=40)


def folded(vocabulary: Vocabulary, stop: tuple[str, ...], tokens: list[int]) -> tuple[AnswerState, str, str]:
    state, text, reasoning = vocabulary.begin(stop), "", ""
    for token in tokens:
        state, piece = state.step(vocabulary.bytes_of(token))
        text, reasoning = text + piece.text, reasoning + piece.reasoning
    return state, text, reasoning


@given(TOKENS, STOPS, st.sampled_from((BYTES, THINKING)))
@settings(max_examples=300, deadline=None)
def test_for_every_k_the_state_after_k_live_tokens_is_that_after_k_replayed_ones(
    tokens: list[int], stop: tuple[str, ...], vocabulary: Vocabulary
) -> None:
    live, text, reasoning = vocabulary.begin(stop), "", ""
    for k, token in enumerate(tokens):
        replayed, so_far, thought = folded(vocabulary, stop, tokens[:k])
        assert (replayed, so_far, thought) == (live, text, reasoning)
        live, piece = live.step(vocabulary.bytes_of(token))
        text, reasoning = text + piece.text, reasoning + piece.reasoning


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3).map(tuple), st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_for_every_k_the_engine_stands_after_k_replayed_tokens_where_it_stood_live(
    stop: tuple[str, ...], seed: int
) -> None:
    letters = {"temperature": 3.0, "allowed_token_ids": tuple(b"abcd"), "stop": stop, "seed": seed, "max_tokens": 14}
    request = ask("r", 5, **letters)
    engine, states = tiny_engine(), []
    engine.add(request)
    (sequence,) = engine.roster.choices("r")
    answer = collect([], {})
    while engine.has_work:
        collect(engine.step(), answer)
        if len(sequence.tokens) - 5 == len(states) + 1:
            states.append(sequence.answer)
    tokens = answer["r"].tokens
    assert len(states) == len(tokens)
    for k in range(1, len(tokens)):
        again = tiny_engine()
        again.add(replace(request, resumed=(tuple(tokens[:k]),)))
        (resumed,) = again.roster.choices("r")
        assert resumed.answer == states[k - 1]
        assert resumed.tokens == sequence.tokens[: 5 + k]
    last = len(tokens) - 1
    resumed_answer = serve_one(tiny_engine(), replace(request, resumed=(tuple(tokens[:last]),)))
    assert resumed_answer.tokens == tokens[last:] and resumed_answer.reasons == answer["r"].reasons


def test_a_stop_string_in_a_thought_that_the_prompt_began_stops_nothing() -> None:
    engine = tiny_engine()
    engine.vocabulary = THINKING
    how = {"allowed_token_ids": tuple(b"a"), "stop": ("aa",), "max_tokens": 9}
    assert serve_one(engine, ask("thinks", b"why? <think>\n", **how)).reasons == {0: "length"}
    assert len(serve_one(engine, ask("says", b"why? ", **how)).tokens) == 2


def test_an_answer_resumed_at_its_very_end_is_told_its_end_again() -> None:
    request = ask("r", 5, max_tokens=6, n=2, temperature=1.0)
    whole = serve_one(tiny_engine(), request)
    engine = tiny_engine()
    engine.add(replace(request, resumed=tuple(tuple(tokens) for tokens in whole.choices.values())))
    answers = collect(run(engine), {})
    assert answers["r"].choices == {} and answers["r"].reasons == whole.reasons
    assert engine.stats().steps == 0

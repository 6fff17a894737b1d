"""engine/stopping.py: text ends exactly where the first complete stop string begins, however it comes in pieces."""

import pickle

from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.stopping import StopState, compile_stops

LETTERS = st.text("ab", max_size=40)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=16)


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The definition, spelled out: the match that ends first, and of those the one that begins first."""
    matches = [(at + len(stop), at, stop) for stop in stops for at in [text.find(stop)] if at >= 0]
    if not matches:
        return text, None
    _, begin, stop = min(matches)
    return text[:begin], stop


def fold(pieces: list[str], stops: list[str]) -> tuple[StopState, str]:
    state, texts = StopState(compile_stops(stops)), []
    for piece in pieces:
        state, text = state.step(piece)
        texts.append(text)
    return state, "".join(texts)


@given(LETTERS, STOPS, st.integers(0, 40))
@settings(max_examples=500)
@example("abcabd", ["abd", "c"], 2)
@example("aab", ["ab", "b"], 1)
def test_text_ends_where_the_definition_says_whatever_the_cuts(text: str, stops: list[str], cut: int) -> None:
    for pieces in ([text], [text[:cut], text[cut:]], list(text)):
        state, released = fold(pieces, stops)
        assert (released + state.finish(), state.matched) == expected(text, stops)


@given(LETTERS, STOPS)
def test_exactly_what_could_begin_a_stop_string_is_held(text: str, stops: list[str]) -> None:
    state, released = fold(list(text), stops)
    if state.matched is None:
        beginnings = {stop[:end] for stop in stops for end in range(len(stop))} | {""}
        longest = max((text[at:] for at in range(len(text) + 1) if text[at:] in beginnings), key=len)
        assert state.held == longest
        assert released + state.held == text


@given(LETTERS, STOPS, st.integers(0, 40))
def test_live_and_replayed_texts_are_in_the_same_state(text: str, stops: list[str], cut: int) -> None:
    live = fold(list(text), stops)[0]
    assert live == fold([text[:cut], text[cut:]], stops)[0]
    assert pickle.loads(pickle.dumps(live)) == live


def test_without_stop_strings_nothing_is_held() -> None:
    assert StopState().step("any text") == (StopState(), "any text")


def test_a_stop_string_may_be_one_character() -> None:
    state, text = StopState(compile_stops(["\n"])).step("one\ntwo")
    assert (text, state.matched) == ("one", "\n")


def test_nothing_follows_a_match() -> None:
    state, _ = StopState(compile_stops(["x"])).step("axb")
    assert (state.step("more"), state.finish()) == ((state, ""), "")


def test_sixteen_long_stop_strings_that_almost_match_stay_quick() -> None:
    stops = ["a" * 255 + chr(ord("b") + number) for number in range(16)]
    state, text = fold(["aaaa"] * 5000, stops)
    assert len(text) + len(state.held) == 20_000

"""engine/answer.py: a fold over tokens' bytes: live or replayed, in whatever pieces, an answer is the same."""

import pickle
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.answer import AnswerState, Piece

PARTS = [
    b"<think>",
    b"</think>",
    b"<thi",
    b"</",
    b"a",
    b" ",
    b"\n",
    "é".encode(),
    b"\xc3",
    b"\xe2\x82",
    b"\xff",
    b"think",
]
PIECES = st.lists(st.sampled_from(PARTS) | st.binary(max_size=2), max_size=24)


def answer_of(pieces: list[bytes], **how: object) -> tuple[AnswerState, Piece]:
    state, text, reasoning = AnswerState.begin(**how), "", ""  # type: ignore[arg-type]
    for piece in pieces:
        state, part = state.step(piece)
        text, reasoning = text + part.text, reasoning + part.reasoning
    return state, Piece(text, reasoning)


def finished(pieces: list[bytes], **how: object) -> tuple[str | None, Piece]:
    state, so_far = answer_of(pieces, **how)
    state, last = state.finish()
    return state.matched, Piece(so_far.text + last.text, so_far.reasoning + last.reasoning)


@given(PIECES)
@settings(max_examples=300)
def test_live_and_replayed_answers_are_in_the_same_state(pieces: list[bytes]) -> None:
    how = {"stop": ("think", "a \n", "é"), "splits_thoughts": True, "strips_space": True}
    live = answer_of(pieces, **how)[0]
    assert answer_of(list(pieces), **how)[0] == live
    assert pickle.loads(pickle.dumps(live)) == live
    if live.matched is None:
        whole = b"".join(pieces)
        assert answer_of([whole], **how)[0] == live  # nor does it matter how the tokens cut the text
        assert finished([whole], **how) == finished(pieces, **how)


def test_a_stop_string_in_a_thought_stops_nothing() -> None:
    pieces = [b"<think>1. END", b" 2.</think>", b"yes EN", b"D no"]
    assert finished(pieces, stop=["END"], splits_thoughts=True) == ("END", Piece("yes ", "1. END 2."))
    assert finished(pieces, stop=["END"]) == ("END", Piece("<think>1. "))


def test_a_stop_string_can_be_completed_by_what_was_held_back() -> None:
    assert finished([b"say <thi"], stop=["<thi"], splits_thoughts=True) == ("<thi", Piece("say "))
    assert finished([b"say \xf0\x9f"], stop=["\ufffd"]) == ("\ufffd", Piece("say "))


def test_what_the_first_tokens_read_ends_nothing_but_may_begin_what_does() -> None:
    pieces = [b"no END", b", n", b"or EN", b"D here", b" END"]
    assert finished(pieces, stop=["END"]) == ("END", Piece("no "))
    assert finished(pieces, stop=["END"], min_tokens=1) == ("END", Piece("no END, nor "))
    assert finished(pieces, stop=["END"], min_tokens=3) == ("END", Piece("no END, nor "))
    assert finished(pieces, stop=["END"], min_tokens=4) == ("END", Piece("no END, nor END here "))
    assert finished(pieces, stop=["END"], min_tokens=9) == (None, Piece("no END, nor END here END"))


def test_nothing_follows_a_stop_string() -> None:
    state, so_far = answer_of([b"a STOP b", b"c"], stop=["STOP"])
    assert (so_far.text, state.finish()[1].text) == ("a ", "")


def test_time_is_linear_in_the_length() -> None:
    def seconds(count: int) -> float:
        begin = time.perf_counter()
        answer_of([b"\xe2\x82", b"\xac<th", b"in "] * count, stop=["€<thin k", "inn"], splits_thoughts=True)
        return time.perf_counter() - begin

    seconds(100)
    short, long = min(seconds(1000) for _ in range(3)), min(seconds(8000) for _ in range(3))
    assert long < 8 * 4 * short

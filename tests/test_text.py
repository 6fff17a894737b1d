"""engine/text.py: pieces of bytes give the text of the whole, and never half a character."""

from hypothesis import example, given
from hypothesis import strategies as st

from engine.text import TextState

# Characters of every length, beginnings of characters, bytes that are never UTF-8, surrogates and overlong forms.
SNIPPETS = [
    b"a", b" ", "é".encode(), "€".encode(), "😀".encode(), b"\xf0", b"\x9f", b"\x98", b"\x80", b"\xff",
    b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\x00",
]  # fmt: skip
BYTES = st.lists(st.sampled_from(SNIPPETS) | st.binary(max_size=3), max_size=24)


def fold_bytes(pieces: list[bytes], strips_space: bool = False) -> tuple[TextState, str]:
    state, texts = TextState(strips_space=strips_space), []
    for piece in pieces:
        state, text = state.step(piece)
        texts.append(text)
    return state, "".join(texts)


@given(BYTES)
@example([b"\xf0\x9f", b"\x98", b"\x80"])
@example([b"\xe2\x82", b"a"])
def test_pieces_give_the_text_of_the_whole(pieces: list[bytes]) -> None:
    state, text = fold_bytes(pieces)
    assert text + state.finish() == b"".join(pieces).decode("utf-8", "replace")


@given(BYTES)
def test_what_was_given_is_never_taken_back(pieces: list[bytes]) -> None:
    whole = b"".join(pieces).decode("utf-8", "replace")
    for count in range(len(pieces) + 1):
        assert whole.startswith(fold_bytes(pieces[:count])[1])


@given(BYTES, st.integers(0, 24))
def test_cuts_make_no_difference_to_the_state(pieces: list[bytes], cut: int) -> None:
    whole = b"".join(pieces)
    assert fold_bytes(pieces) == fold_bytes([whole[:cut], whole[cut:]]) == fold_bytes([whole])


def test_half_a_character_waits_for_its_other_half() -> None:
    state, text = TextState().step("é".encode()[:1])
    assert text == ""
    assert state.step("é".encode()[1:])[1] == "é"


def test_at_most_three_bytes_wait() -> None:
    for piece in (b"\xf0\x9f\x98", b"\xf0" * 50, b"\xe2\x82" * 50):
        assert len(TextState().step(piece)[0].tail) <= 3


@given(BYTES)
def test_one_leading_space_is_dropped_when_asked(pieces: list[bytes]) -> None:
    state, text = fold_bytes(pieces, strips_space=True)
    assert text + state.finish() == b"".join(pieces).decode("utf-8", "replace").removeprefix(" ")

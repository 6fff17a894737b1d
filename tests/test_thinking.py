"""engine/thinking.py: what stands between the tags is thought, the rest is said, however it comes in pieces."""

from hypothesis import given
from hypothesis import strategies as st

from engine.thinking import Split, ThinkState

SAID = st.lists(st.sampled_from(["<think>", "</think>", "<thi", "</", "<", ">", "think>", "a", " ", "\n", "é"]))


def fold_thoughts(pieces: list[str], is_thinking: bool = False) -> tuple[ThinkState, Split]:
    state, said, thought = ThinkState(is_thinking), "", ""
    for piece in pieces:
        state, split = state.step(piece)
        said, thought = said + split.said, thought + split.thought
    return state, Split(said, thought)


@given(SAID, st.booleans(), st.integers(0, 40))
def test_thoughts_are_split_the_same_whatever_the_cuts(parts: list[str], is_thinking: bool, cut: int) -> None:
    whole = "".join(parts)
    expected = fold_thoughts([whole], is_thinking)
    assert fold_thoughts(list(whole), is_thinking) == expected
    assert fold_thoughts([whole[:cut], whole[cut:]], is_thinking) == expected


@given(SAID)
def test_text_without_tags_is_all_said(parts: list[str]) -> None:
    whole = "".join(parts).replace("<think>", "")
    if "<think>" not in whole:
        state, split = fold_thoughts(list(whole))
        assert (split.said + state.finish().said, split.thought) == (whole, "")


def test_a_thought_and_the_empty_lines_around_it_are_taken_out() -> None:
    for text in (
        "<think>\n\n</think>\n\nHello",
        "Hel<think>a < b</think>lo",
        "<think>why</think> <think>so</think>Hello",
    ):
        assert fold_thoughts(list(text))[1].said == "Hello"
    assert fold_thoughts(["<think>a < b</thin", "k>c"])[1] == Split("c", "a < b")


def test_a_prompt_that_ends_with_the_opening_tag_begins_with_a_thought() -> None:
    assert fold_thoughts(["so then</think>\n\nYes"], is_thinking=True)[1] == Split("Yes", "so then")


def test_a_thought_that_never_ends_is_never_said() -> None:
    state, split = fold_thoughts(["<think>on and on </thi"])
    assert split.said == state.finish().said == ""
    assert split.thought + state.finish().thought == "on and on </thi"

"""What was refused just now is refused again without asking, and nothing else is."""

import pytest

from actors import turnstile as turnstiles
from actors.asking import Ask
from actors.refusals import Overloaded
from actors.turnstile import Turnstile


def ask(prompt: str = "a prompt", deadline: float | None = 5.0, **words: object) -> Ask:
    return Ask("id", prompt, deadline_seconds=deadline, words={"max_tokens": 32, **words})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(turnstiles.time, "monotonic", lambda: now[0])
    return now


def test_what_was_refused_is_refused_again_until_it_may_come_back(clock: list[float]) -> None:
    turnstile = Turnstile()
    turnstile.check(ask())
    turnstile.close(ask(), Overloaded("full", retry_after_seconds=0.4))
    clock[0] += 0.3
    with pytest.raises(Overloaded) as again:
        turnstile.check(ask())
    assert (again.value.message, round(again.value.retry_after_seconds, 3)) == ("full", 0.1)
    clock[0] += 0.2
    turnstile.check(ask())


@pytest.mark.parametrize("other", [ask("short"), ask(deadline=9.0), ask(deadline=None), ask(max_tokens=8), ask(n=2)])
def test_what_asks_for_less_or_for_something_else_is_let_through(clock: list[float], other: Ask) -> None:
    turnstile = Turnstile()
    turnstile.close(ask(), Overloaded("full", retry_after_seconds=0.4))
    turnstile.check(other)


def test_a_long_prompt_is_refused_where_a_shorter_one_was(clock: list[float]) -> None:
    turnstile = Turnstile()
    turnstile.close(ask(), Overloaded("full", retry_after_seconds=0.4))
    with pytest.raises(Overloaded):
        turnstile.check(ask("a longer prompt"))


def test_the_system_is_asked_again_after_a_second_whatever_it_said(clock: list[float]) -> None:
    turnstile = Turnstile()
    turnstile.close(ask(), Overloaded("full", retry_after_seconds=60.0))
    clock[0] += 1.01
    turnstile.check(ask())

"""What the live page draws of the counts it is told."""

from collections.abc import Mapping

from deploy.http.backend import Stats
from deploy.http.history import History
from deploy.http.meters import Meters
from tests.http_world import ScriptedBackend


def rates(*counts: Mapping[str, int]) -> list[object]:
    """The tokens a second that are drawn when this is told, one after the other, once a second."""
    seconds = iter(map(float, range(len(counts) + 1)))
    history = History(ScriptedBackend(), Meters(), lambda: next(seconds))
    for told in counts:
        history.take(Stats(None, counts=told))
    return [sample["tokens_per_second"] for sample in history.after(0)]


def test_tokens_a_second_are_those_since_the_sample_before() -> None:
    assert rates({"tokens": 0}, {"tokens": 10}, {"tokens": 10}, {"tokens": 40}) == [0, 10, 0, 30]


def test_a_door_that_is_started_late_does_not_draw_the_whole_journal() -> None:
    assert rates({"tokens": 1_000_000}, {"tokens": 1_000_005}) == [0, 5]


def test_nothing_is_drawn_of_the_time_before_the_first_count() -> None:
    assert rates({}, {}, {"tokens": 1_000_000}, {"tokens": 1_000_005}) == [0, 0, 0, 5]


def test_a_count_that_falls_draws_nothing() -> None:
    assert rates({"tokens": 50}, {"tokens": 20}, {"tokens": 25}) == [0, 0, 5]

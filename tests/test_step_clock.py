"""How long a step may take, from what was learned of the steps before, in this life and the last."""

from pathlib import Path

from actors.progress import MIN_ALLOWED_SECONDS, Lesson, Progress, glance, last_lesson, progress_path
from actors.step_clock import StepClock


def test_a_step_may_take_three_times_the_slowest_and_no_less_than_the_least() -> None:
    clock = StepClock()
    clock.record(0.1, 0)
    assert clock.allowed(0) == MIN_ALLOWED_SECONDS
    clock.record(2.0, 0)
    assert clock.allowed(0) == 6.0
    for _ in range(64):
        clock.record(0.1, 0)
    assert clock.allowed(0) == MIN_ALLOWED_SECONDS


def test_a_prompts_tokens_are_counted_with_what_they_cost_before() -> None:
    clock = StepClock()
    clock.record(1.0, 100)
    assert clock.allowed(1000) == 30.0
    assert clock.allowed(0) == 3.0


def test_the_first_life_is_patient_and_the_next_one_knows() -> None:
    assert StepClock().allowed(0) == 30.0
    first = StepClock()
    first.record(0.7, 70)
    heir = StepClock(first.lesson())
    assert (round(heir.allowed(0), 3), round(heir.allowed(100), 3)) == (2.1, 3.0)


def test_lives_that_end_in_their_first_step_make_the_next_one_more_patient() -> None:
    lesson, allowed = Lesson(1.0, 0.01), []
    for _ in range(4):
        clock = StepClock(lesson)
        allowed.append(clock.allowed(0))
        lesson = clock.lesson()
    assert allowed == [3.0, 6.0, 12.0, 24.0]


def test_a_lesson_outlives_the_process_also_if_it_died_while_it_loaded(tmp_path: Path) -> None:
    assert last_lesson(tmp_path, "model") == Lesson()
    lesson = Lesson(0.5, 0.002)
    Progress(progress_path(tmp_path, "model/9"), Lesson()).begin(3.0, lesson)
    assert last_lesson(tmp_path, "model") == lesson
    Progress(progress_path(tmp_path, "model/10"), lesson).begin(600.0)
    assert last_lesson(tmp_path, "model") == lesson
    seen = glance(progress_path(tmp_path, "model/10"))
    assert seen is not None and seen.allowed_seconds == 600.0

"""What is accepted, when far more is asked than can be done."""

from actors.load import Load
from actors.refusals import Overloaded

RATE, TICK, COST, DEADLINE = 480.0, 0.05, 32, 6.0


def test_whoever_is_accepted_under_overload_is_in_time_and_the_batch_stays_full() -> None:
    """All that was accepted shares the rate, twenty times too many come, and who is late goes, with what was done."""
    load, living = Load(1 << 20), list[tuple[float, int]]()  # until when, and what is left to do
    useful = late = done = 0
    for tick in range(int(60 / TICK)):
        now = tick * TICK
        for _ in range(int(20 * RATE * TICK / COST)):
            try:
                load.check(COST, len(living), now, now + DEADLINE)
            except Overloaded:
                continue
            living.append((now + DEADLINE, COST))
            load.owed_tokens += COST
        work = int(RATE * TICK)
        for turn in range(min(work, len(living))):
            place = (done + turn) % len(living)
            until, left = living[place]
            living[place] = until, left - 1
        done += work
        load.owed_tokens -= min(work, len(living))
        load.pace.record(now, min(work, len(living)))
        useful += COST * sum(left <= 0 for _, left in living)
        gone = [(until, left) for until, left in living if left > 0 and until <= now]
        late += len(gone)
        load.owed_tokens -= sum(left for _, left in gone)
        living = [(until, left) for until, left in living if left > 0 and until > now]
    assert late < 20  # those of the first second, when nobody had seen how fast it goes
    assert useful > 0.9 * RATE * (60 - DEADLINE)

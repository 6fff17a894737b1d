"""engine/queue.py: lanes share by tokens, priorities are shares, and whoever waits gets its turn."""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.queue import QUANTUM_TOKENS, FairQueue
from engine.request import Request, Sampling
from engine.sequence import Sequence


def waiting(name: str, cost: int = 100, arrival: int = 0, **fields: Any) -> Sequence:
    request = Request(name, (0,), Sampling(max_tokens=cost - 1), **fields)
    return Sequence(request, 0, 0, frozenset(), arrival, [0], 1, cost, b"")


def tokens_served(queue: FairQueue, total: int) -> Counter[str]:
    """Which tenant got how much of the first so many tokens."""
    served: Counter[str] = Counter()
    while served.total() < total:
        request = queue.pop().request
        served[request.tenant] += request.cost
    return served


def test_one_lane_is_served_in_order_of_arrival() -> None:
    queue = FairQueue()
    for index, cost in enumerate((5000, 1, 700, 2)):
        queue.push(waiting(f"r{index}", cost))
    assert [queue.pop().request.id for _ in range(4)] == ["r0", "r1", "r2", "r3"]
    assert queue.peek() is None and len(queue) == 0


def test_a_tenant_with_many_requests_gets_no_more_than_one_with_few() -> None:
    queue = FairQueue()
    for index in range(1000):
        queue.push(waiting(f"many {index}", 100, tenant="many"))
    for index in range(100):
        queue.push(waiting(f"few {index}", 100, tenant="few"))
    served = tokens_served(queue, 10_000)
    assert abs(served["many"] - served["few"]) <= 2 * QUANTUM_TOKENS


def test_shares_are_counted_in_tokens_not_in_requests() -> None:
    queue = FairQueue()
    for index in range(400):
        queue.push(waiting(f"short {index}", 50, tenant="short"))
        queue.push(waiting(f"long {index}", 2000, tenant="long"))
    served = tokens_served(queue, 18_000)
    assert abs(served["short"] - served["long"]) <= 2000 + QUANTUM_TOKENS


def test_adapters_of_one_tenant_have_lanes_of_their_own() -> None:
    queue = FairQueue()
    for index in range(50):
        queue.push(waiting(f"a {index}", 512, adapter="a"))
    queue.push(waiting("b", 512, adapter="b"))
    assert "b" in [queue.pop().request.id for _ in range(3)]


def test_a_priority_lower_by_one_is_a_share_twice_as_large() -> None:
    queue = FairQueue()
    for index in range(1000):
        queue.push(waiting(f"high {index}", 64, tenant="high", priority=0))
        queue.push(waiting(f"low {index}", 64, tenant="low", priority=1))
    served = tokens_served(queue, 30_000)
    assert 1.8 < served["high"] / served["low"] < 2.2


def test_among_equals_the_lower_priority_number_goes_first() -> None:
    queue = FairQueue()
    queue.push(waiting("late", 100, priority=1))
    queue.push(waiting("early", 100, priority=-1))
    assert [queue.pop().request.id, queue.pop().request.id] == ["early", "late"]


def test_the_choice_stands_until_it_is_taken() -> None:
    queue = FairQueue()
    queue.push(waiting("large", 100_000, tenant="a"))
    assert queue.peek() is not None
    queue.push(waiting("small", 1, tenant="b", priority=-16))
    assert queue.pop().request.id == "large"


def test_the_choice_stands_when_somebody_else_is_removed() -> None:
    queue = FairQueue()
    for name, cost, tenant in (("largest", 1000, "a"), ("small", 10, "a"), ("next", 500, "b")):
        queue.push(waiting(name, cost, tenant=tenant))
    chosen = queue.peek()
    assert chosen is not None and chosen.request.id == "next"
    queue.remove(queue._lanes[0, "a", ""].sequences[0])
    assert queue.pop().request.id == "next"


def test_a_removed_request_is_gone_and_the_others_stay() -> None:
    queue = FairQueue()
    made = [waiting(f"r{index}", tenant=f"t{index % 2}") for index in range(6)]
    for sequence in made:
        queue.push(sequence)
    queue.peek()
    for sequence in made[::2]:
        queue.remove(sequence)
    assert len(queue) == 3 and queue.num_tokens == 300
    assert {queue.pop().request.id for _ in range(3)} == {"r1", "r3", "r5"}


LANES = st.tuples(st.integers(-2, 1), st.sampled_from("abc"), st.integers(100, 4000))


@given(st.lists(LANES, max_size=12), LANES, st.lists(LANES, min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_what_rivals_get_while_somebody_waits_is_bounded_by_their_shares(
    before: list[tuple[int, str, int]], mine: tuple[int, str, int], rivals: list[tuple[int, str, int]]
) -> None:
    """However many come after: in so many rounds as I need, each lane earns its quantum and may owe one request."""
    queue = FairQueue()
    numbers = iter(range(10**9))

    def push(lane: tuple[int, str, int], name: str = "") -> None:
        queue.push(waiting(f"{name}{next(numbers)}", lane[2], tenant=lane[1], priority=lane[0]))

    for lane in before:
        push(lane)
    push(mine, "me ")
    key, quantum = mine[:2], QUANTUM_TOKENS * 2.0 ** -mine[0]
    ahead = sum(lane[2] for lane in before if lane[:2] == key) + mine[2]
    rounds = ahead / quantum + 1
    lanes = {lane[:2] for lane in [*before, *rivals]} - {key}
    largest = max(lane[2] for lane in [*before, *rivals, mine])
    bound = ahead + sum(rounds * QUANTUM_TOKENS * 2.0 ** -lane[0] + largest for lane in lanes) + 2 * largest
    served = 0
    while True:
        for lane in rivals[: max(0, 40 - len(queue))]:
            push(lane)
        taken = queue.pop().request
        if taken.id.startswith("me"):
            return
        served += taken.cost
        assert served <= bound

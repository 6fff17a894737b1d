"""Load: how fast work is done, and whether more of it may be accepted. Counts predicted tokens; knows no request."""

import math
from collections import deque
from dataclasses import dataclass, field

from actors.refusals import DeadlinePassed, Overloaded

WINDOW_SECONDS = 5.0
MARGIN = 1.1  # a promise that is exact is broken by the first disturbance


@dataclass(slots=True)
class Pace:
    """Tokens of work done a second, over the last seconds in which there was any."""

    window: deque[tuple[float, int]] = field(default_factory=deque)
    total: int = 0

    def record(self, now: float, num_tokens: int) -> None:
        self.window.append((now, num_tokens))
        self.total += num_tokens
        while self.window[0][0] < now - WINDOW_SECONDS:
            self.total -= self.window.popleft()[1]

    def rate(self) -> float | None:
        """None while too little was seen to say."""
        if len(self.window) < 2:
            return None
        seconds = self.window[-1][0] - self.window[0][0]
        return (self.total - self.window[0][1]) / seconds if seconds > 0.05 else None


@dataclass(slots=True)
class Load:
    """The work accepted and not done, against its bound."""

    max_tokens: int
    owed_tokens: int = 0
    pace: Pace = field(default_factory=Pace)
    soonest_seconds: float = 0.0  # from a request to its first token, the shortest that was seen

    def saw_first_token(self, seconds: float) -> None:
        self.soonest_seconds = min(self.soonest_seconds or seconds, seconds)

    def check(self, cost: int, num_living: int, now: float, deadline: float | None) -> None:
        """Refuse what is too much, what cannot be done in its time, and what would be late behind others.

        Who is in the batch shares it with all others there, also with those that come later and take the place of who
        leaves. So a request takes as long as if all had as much to do as it has, or until all is done that is owed now.
        """
        excess = self.owed_tokens + cost - self.max_tokens
        if excess > 0 and self.owed_tokens:
            raise Overloaded(
                f"{self.owed_tokens} tokens of work are accepted and {self.max_tokens} is the limit; "
                f"this request may take {cost} more",
                retry_after_seconds=self.seconds_for(excess),
            )
        if deadline is None:
            return
        left = deadline - now
        if left < self.soonest_seconds:
            raise too_short(left, self.soonest_seconds)
        rate = self.pace.rate()
        if rate is None or not self.owed_tokens:
            return
        if cost / rate > left:  # were it alone
            raise too_short(left, cost / rate)
        work = MARGIN * max(self.owed_tokens + cost, cost * (num_living + 1))
        late = work / rate - left
        if late > 0:
            raise Overloaded(
                f"the work before it would make this request late: {left:.1f} s are left",
                retry_after_seconds=self.seconds_for(math.ceil(late * rate)),
            )

    def seconds_for(self, num_tokens: int) -> float:
        """How long so much work takes at the present pace."""
        rate = self.pace.rate() or 100.0
        return min(max(num_tokens / max(rate, 1.0), 0.1), 60.0)


def too_short(left: float, wanted: float) -> DeadlinePassed:
    """Not a matter of who else is there, so nothing is won by coming back."""
    return DeadlinePassed(
        f"the deadline is too short: {left:.3f} s are left, and such a request takes {wanted:.3f} s at least",
        "deadline",
    )

"""StepClock: how long the next step may take. Three times what it should, judged by the steps before.

A model server hands on what it has learned: its first steps would else be given half a minute, and a request that hangs
the engine meets a new life each time. If a life did not come to the end of a single step, the next one allows twice as
much: so a slow beginning, with a large model's weights still on the disk, is not taken for a hang for ever.
"""

from collections import deque
from dataclasses import dataclass, field

from actors.progress import MIN_ALLOWED_SECONDS, Lesson

FIRST_SECONDS = 10.0  # of a step, where nobody has learned anything
FIRST_PROMPT_TOKEN_SECONDS = 0.05
PROMPT_TOKENS = 16  # fewer of them say nothing about what one costs


@dataclass(slots=True)
class StepClock:
    """Owned by one model server."""

    inherited: Lesson = Lesson()
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    prompt_token_seconds: float = 0.0  # 0: none was seen

    def allowed(self, num_prompt_tokens: int) -> float:
        slowest = max(self.recent, default=0.0) or self.inherited.slowest_seconds or FIRST_SECONDS
        each = self.prompt_token_seconds or self.inherited.prompt_token_seconds or FIRST_PROMPT_TOKEN_SECONDS
        return max(MIN_ALLOWED_SECONDS, 3 * max(slowest, num_prompt_tokens * each))

    def record(self, seconds: float, num_prompt_tokens: int) -> None:
        self.recent.append(seconds)
        if num_prompt_tokens >= PROMPT_TOKENS:
            # up at once, down slowly: a false alarm costs a restart, a late one some seconds
            self.prompt_token_seconds = max(seconds / num_prompt_tokens, 0.9 * self.prompt_token_seconds)

    def lesson(self) -> Lesson:
        """For the next life, as it stands before a step whose end this one may not see."""
        slowest, each = self.inherited
        if not self.recent:
            return Lesson(2 * slowest, 2 * each)
        return Lesson(max(self.recent), self.prompt_token_seconds or each)

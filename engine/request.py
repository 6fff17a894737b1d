"""Request: what is asked of the engine. Token ids and settings only: no text, no arrays, no deadline, no sender.

The settings carry the names that OpenAI and vLLM gave them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and when to stop."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0
    seed: int | None = None  # None: derived from the request's id
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] | None = None
    banned_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # how many of the likeliest tokens to report beside the chosen one
    prompt_logprobs: int | None = None

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed before the draw, for this request alone."""
        return bool(
            self.has_penalties
            or self.logit_bias
            or self.allowed_token_ids is not None
            or self.banned_token_ids
            or self.min_tokens
        )


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, and what is wanted of it. `resumed` holds the tokens that each choice already has."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling = Sampling()
    adapter: str | None = None
    tenant: str = ""
    priority: int = 0  # lower goes earlier, and gets the larger share
    resumed: tuple[tuple[int, ...], ...] = ()

    @property
    def cost(self) -> int:
        """Tokens it may take, all choices together: what fairness counts."""
        return len(self.prompt) + self.sampling.n * self.sampling.max_tokens

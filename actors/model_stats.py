"""What a model server says of itself. Apart from it, so that who asks need not have MLX."""

from dataclasses import dataclass

from actors.node import call
from actors.pid import Server
from engine.stats import EngineStats


@dataclass(frozen=True, slots=True)
class ModelServerStats:
    is_ready: bool
    num_requests: int
    alone: str | None
    born_at: float  # on the node's clock
    load_seconds: float
    process_id: int
    fingerprint: str  # of the model's content
    engine: EngineStats


@dataclass(frozen=True, slots=True)
class AskStats: ...


def stats(server: Server, timeout: float | None = 5.0) -> ModelServerStats:
    """What it does and has done; answered between two steps."""
    answer = call(server, AskStats(), timeout)
    assert isinstance(answer, ModelServerStats)
    return answer

"""SystemConfig: everything that a running system is made from, as plain data; and the names of its processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from actors.birth import NO_RESOURCES, Resources
from actors.journal import Level
from actors.ledger_options import LedgerOptions
from actors.model_choice import ModelChoice
from actors.supervision import ChildSpec
from engine.limits import check_integer

ROOT = "genserve"
HANDLE = "genserve"  # the public actor; processes of ours have an epoch in their names, so they never meet


@dataclass(frozen=True, slots=True)
class SystemConfig:
    """One system: a model, its replicas, and how requests are kept."""

    choice: ModelChoice
    directory: str  # journals and progress files
    level: Level = "kill-safe"
    partitions: int = 1
    replicas: int = 1  # model servers at work
    spares: int = 0  # model servers kept warm beside them
    limits: LedgerOptions = field(default_factory=LedgerOptions)
    max_restarts: int = 3
    max_seconds: float = 5.0
    watch_seconds: float = 0.2  # between two looks of the watchdog
    is_public: bool = True  # for other programs: a registry, and a handle for those that know only Ray
    gather_seconds: float = 0.0  # that a model server may keep what it has to tell, where nobody reads along
    is_flat: bool = False  # the root supervises all by itself: fewer processes beside the model
    resources: Resources = NO_RESOURCES  # of each model server
    doors: tuple[ChildSpec, ...] = ()  # more children, after the request servers: the HTTP server
    lives_before: Mapping[str, int] = field(default_factory=dict)  # of these names, in earlier systems on the same Ray

    def __post_init__(self) -> None:
        check_integer("replicas", self.replicas, 1, 64)
        check_integer("partitions", self.partitions, 1, 64)
        check_integer("spares", self.spares, 0, 8)

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(f"{ROOT}.models.model-{number}" for number in range(self.replicas + self.spares))

    @property
    def partition_names(self) -> tuple[str, ...]:
        return partition_names(self.partitions)

    @property
    def models_supervisor(self) -> str:
        return ROOT if self.is_flat else f"{ROOT}.models"

    def journal_directory(self, partition: int) -> Path:
        return Path(self.directory) / f"requests-{partition}"


def partition_names(count: int) -> tuple[str, ...]:
    return tuple(f"{ROOT}.requests.requests-{number}" for number in range(count))

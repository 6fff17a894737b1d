"""Messages between request servers and model servers. Small frozen records; whose they are stands above each group."""

from dataclasses import dataclass

from actors.pid import Pid
from engine.limits import Capacity

# to a model server


@dataclass(frozen=True, slots=True)
class Run:
    """Run these, packed by `engine.wire`; one that runs already is begun again with what it brings."""

    consumer: Pid
    requests: tuple[bytes, ...]
    is_alone: bool = False  # each by itself, until it has got further


@dataclass(frozen=True, slots=True)
class Abort:
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Hello:
    """A request server is here: tell it whether you are ready."""

    consumer: Pid


@dataclass(frozen=True, slots=True)
class Attach:
    """From now on this name means the adapter in this folder."""

    name: str
    path: str


@dataclass(frozen=True, slots=True)
class Detach:
    name: str


# to a request server


@dataclass(frozen=True, slots=True)
class ModelUp:
    """A model server takes requests."""

    model: Pid
    capacity: Capacity
    max_sequences: int
    adapters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelLeaving:
    """It takes nothing new; what it has, it brings to its end."""

    model: Pid


@dataclass(frozen=True, slots=True)
class Events:
    """What a step told about the receiver's requests, packed by `engine.wire`."""

    model: Pid
    packed: bytes


@dataclass(frozen=True, slots=True)
class Turned:
    """The engine would not take a request."""

    model: Pid
    request_id: str
    code: str
    message: str


# to the supervisor of the model servers


@dataclass(frozen=True, slots=True)
class Forgive:
    """This one died of a request, which is being dealt with: do not count it as a failing of the model server."""

    model: Pid

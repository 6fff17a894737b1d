"""Registry: keys to pids, each key for one process, given back when it dies. Starts and stops nobody.

A node's own names (`whereis`) are for the few processes of the tree; a registry is for the many that come and go.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.envelope import Down
from actors.exits import AlreadyStarted
from actors.genserver import GenServer, NoReply, Reply
from actors.node import call, demonitor, is_alive, monitor
from actors.pid import From, Pid, Ref, Server


def register(registry: Server, key: str, pid: Pid) -> None:
    """Raises AlreadyStarted with the process that has the key."""
    owner: Pid = call(registry, _Register(key, pid))
    if owner != pid:
        raise AlreadyStarted(owner)


def unregister(registry: Server, key: str, pid: Pid) -> None:
    """Give a key back; nothing happens if it is another's."""
    call(registry, _Unregister(key, pid))


def lookup(registry: Server, key: str) -> Pid | None:
    pid: Pid | None = call(registry, _Lookup(key))
    return pid


def keys(registry: Server, pid: Pid) -> list[str]:
    """All that a process is registered under."""
    found: list[str] = call(registry, _Keys(pid))
    return found


def count(registry: Server) -> int:
    number: int = call(registry, _Count())
    return number


@dataclass(frozen=True, slots=True)
class _Register:
    key: str
    pid: Pid


@dataclass(frozen=True, slots=True)
class _Unregister:
    key: str
    pid: Pid


@dataclass(frozen=True, slots=True)
class _Lookup:
    key: str


@dataclass(frozen=True, slots=True)
class _Keys:
    pid: Pid


@dataclass(frozen=True, slots=True)
class _Count: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    pid: Pid
    monitor: Ref


class Registry(GenServer):
    def init(self) -> None:
        self.entries: dict[str, _Entry] = {}

    def handle_call(self, message: object, from_: From) -> Reply:
        match message:
            case _Register(key, pid):
                return Reply(self._register(key, pid))
            case _Unregister(key, pid):
                if self._owner(key) == pid:
                    demonitor(self.entries.pop(key).monitor)
                return Reply(None)
            case _Lookup(key):
                return Reply(self._owner(key))
            case _Keys(pid):
                return Reply([key for key, entry in self.entries.items() if entry.pid == pid])
            case _Count():
                return Reply(len(self.entries))
            case _:
                raise NotImplementedError(f"a registry does not answer {message!r}")

    def handle_info(self, message: object) -> NoReply:
        match message:
            case Down(ref):
                self.entries = {key: entry for key, entry in self.entries.items() if entry.monitor != ref}
        return NoReply()

    def _owner(self, key: str) -> Pid | None:
        entry = self.entries.get(key)
        return entry.pid if entry else None

    def _register(self, key: str, pid: Pid) -> Pid:
        owner = self._owner(key)
        # The Down of a dead owner may still wait behind this message; its heir must not be turned away meanwhile.
        if owner is not None and (owner == pid or is_alive(owner)):
            return owner
        if owner is not None:
            demonitor(self.entries[key].monitor)
        self.entries[key] = _Entry(pid, monitor(pid))
        return pid

"""Children: the ordered list of a supervisor's children, and its answers to who is there. Starts and stops nobody."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from actors.child import Child
from actors.exits import Reason
from actors.pid import Ref


class Refused(Exception):
    """A supervisor's no: "not_found", "running", "restarting", "already_present", ("already_started", pid), ..."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Counts:
    specs: int
    active: int
    supervisors: int
    workers: int


class Children:
    """Mutable; owned by one supervisor. In start order."""

    def __init__(self, children: Iterable[Child] = ()) -> None:
        self._children = {child.spec.id: child for child in children}

    def __iter__(self) -> Iterator[Child]:
        return iter(list(self._children.values()))

    def __len__(self) -> int:
        return len(self._children)

    def put(self, child: Child) -> None:
        """In its old place, or as the last."""
        self._children[child.spec.id] = child

    def put_down(self, child: Child) -> None:
        """A temporary child that is down is forgotten; any other keeps its place."""
        if child.spec.restart == "temporary":
            self.remove(child)
        else:
            self.put(child)

    def remove(self, child: Child) -> None:
        del self._children[child.spec.id]

    def find(self, id: str) -> Child | None:
        return self._children.get(id)

    def watched_by(self, ref: Ref) -> Child | None:
        return next((child for child in self._children.values() if child.monitor == ref), None)

    def present(self, id: str) -> Child:
        child = self.find(id)
        if child is None:
            raise Refused("not_found")
        return child

    def idle(self, id: str) -> Child:
        child = self.present(id)
        if not child.is_down:
            raise Refused(child.info.state)
        return child

    def counts(self) -> Counts:
        supervisors = sum(child.spec.type == "supervisor" for child in self)
        return Counts(len(self), sum(child.is_running for child in self), supervisors, len(self) - supervisors)

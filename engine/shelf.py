"""Shelf: the adapters in memory, who uses them, and which are known but not here. Reads no file.

An adapter has a slot as long as it is in memory; a row names its slot. When all do not fit, the least recently used
one that nobody uses is dropped; it stays known, and is wanted again when a request needs it.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from engine.adapter import Adapter
from engine.lora import AdapterStack, stack_adapters
from engine.refusal import QueueFull, UnknownAdapter


@dataclass(slots=True)
class Slot:
    name: str
    adapter: Adapter
    num_users: int = 0
    is_retired: bool = False  # detached, or replaced by a newer version: goes when its last user goes


class Shelf:
    """Owned by the Engine."""

    def __init__(self, num_layers: int, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._num_layers = num_layers
        self._slots: list[Slot | None] = []
        self._current: OrderedDict[str, int] = OrderedDict()  # name -> slot, least recently used first
        self._known: dict[str, int] = {}  # name -> bytes
        self._stack: AdapterStack | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._known)

    @property
    def resident(self) -> tuple[str, ...]:
        return tuple(self._current)

    @property
    def num_bytes(self) -> int:
        return sum(slot.adapter.num_bytes for slot in self._slots if slot is not None)

    @property
    def bytes_in_use(self) -> int:
        return sum(slot.adapter.num_bytes for slot in self._slots if slot is not None and slot.num_users)

    def attach(self, name: str, adapter: Adapter) -> None:
        """Make an adapter known and put it in memory; a version in use before stays until its users are done."""
        if name in self._known and name not in self._current:
            self._known[name] = adapter.num_bytes  # so that nobody asks for it before there is so much room
        if self.bytes_in_use + adapter.num_bytes > self.max_bytes:
            raise QueueFull(
                f"adapter {name!r} has {adapter.num_bytes} bytes; adapters may have {self.max_bytes} together, "
                f"and those in use have {self.bytes_in_use}",
                "adapter",
            )
        if name in self._current:
            self._retire(self._current.pop(name))
        self._make_room(adapter.num_bytes)
        index = self._free_slot()
        self._slots[index] = Slot(name, adapter)
        self._current[name] = index
        self._known[name] = adapter.num_bytes
        self._stack = None

    def detach(self, name: str) -> None:
        """Forget an adapter; those who use it keep it to their end."""
        if name not in self._known:
            raise UnknownAdapter(f"no adapter {name!r} is attached; attached are {listed(self.names)}", "adapter")
        del self._known[name]
        if name in self._current:
            self._retire(self._current.pop(name))

    def check_known(self, name: str) -> None:
        if name not in self._known:
            raise UnknownAdapter(f"no adapter {name!r} is attached; attached are {listed(self.names)}", "adapter")

    def is_known(self, name: str) -> bool:
        return name in self._known

    def is_resident(self, name: str) -> bool:
        return name in self._current

    def has_room_for(self, name: str, coming: Collection[str] = ()) -> bool:
        """Whether a known adapter can be in memory beside those in use and those on their way."""
        slot = self._slots[self._current[name]] if name in self._current else None
        if slot is not None and slot.num_users:
            return True
        reserved = sum(self._known[other] for other in coming if other != name)
        return self.bytes_in_use + reserved + self._known[name] <= self.max_bytes

    def acquire(self, name: str) -> tuple[int, str]:
        """One more user of a resident adapter: its slot and version."""
        index = self._current[name]
        self._current.move_to_end(name)
        slot = self._slots[index]
        assert slot is not None
        slot.num_users += 1
        return index, slot.adapter.version

    def share(self, index: int) -> None:
        """One more user of a slot in use."""
        slot = self._slots[index]
        assert slot is not None and slot.num_users > 0
        slot.num_users += 1

    def release(self, index: int) -> None:
        slot = self._slots[index]
        assert slot is not None and slot.num_users > 0
        slot.num_users -= 1
        if slot.is_retired and not slot.num_users:
            self._drop(index)

    def _make_room(self, num_bytes: int) -> None:
        """Drop idle adapters, least recently used first, until so many bytes fit."""
        for name in list(self._current):
            if self.num_bytes + num_bytes <= self.max_bytes:
                break
            slot = self._slots[self._current[name]]
            if slot is not None and not slot.num_users:
                self._drop(self._current.pop(name))

    def stack(self) -> AdapterStack | None:
        """All adapters in memory, side by side, by slot: those detached and still in use as well."""
        if self._stack is None and any(self._slots):
            adapters = [EMPTY if slot is None else slot.adapter for slot in self._slots]
            self._stack = stack_adapters(adapters, self._num_layers)
        return self._stack

    def _retire(self, index: int) -> None:
        slot = self._slots[index]
        assert slot is not None
        slot.is_retired = True
        if not slot.num_users:
            self._drop(index)

    def _drop(self, index: int) -> None:
        self._slots[index] = None
        self._stack = None

    def _free_slot(self) -> int:
        for index, slot in enumerate(self._slots):
            if slot is None:
                return index
        self._slots.append(None)
        return len(self._slots) - 1


EMPTY = Adapter({}, "")


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(sorted(names)[:20]) or "none"

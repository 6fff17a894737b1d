"""Shelf: the adapters in memory, who uses them, and which are known but not here. Reads no file.

An adapter has a slot as long as it is in memory; a row names its slot. When all do not fit, the least recently used
one that nobody uses is dropped; it stays known, and is wanted again when a request needs it.

All adapters' tensors lie side by side in one stack. Laying it anew copies every one of them, and those who run would
feel it; so an adapter that leaves its slot leaves its tensors there, and the next one of the same ranks is written over
them. Only for one that fits no vacant slot the stack is laid anew, with some more slots of its kind.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

import mlx.core as mx

from engine.adapter import Adapter, LowRank
from engine.lora import AdapterStack, stack_adapters
from engine.refusal import QueueFull, UnknownAdapter, Unsupported

SPARE_SHARE = 4  # for so many adapters, and for so many times its bytes, a vacant slot is laid


@dataclass(slots=True)
class Slot:
    name: str
    version: str
    num_bytes: int
    adapter: Adapter | None  # until its tensors are in the stack
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
        self._laid_bytes = 0  # that the stack was laid for

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._known)

    @property
    def resident(self) -> tuple[str, ...]:
        return tuple(self._current)

    @property
    def num_bytes(self) -> int:
        return sum(slot.num_bytes for slot in self._slots if slot is not None)

    @property
    def bytes_in_use(self) -> int:
        return sum(slot.num_bytes for slot in self._slots if slot is not None and slot.num_users)

    def attach(self, name: str, adapter: Adapter) -> None:
        """Make an adapter known and put it in memory; a version in use before stays until its users are done."""
        self._check_can_ever_fit(name, adapter)
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
        self._current[name] = self._place(name, adapter)
        self._known[name] = adapter.num_bytes

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
        return index, slot.version

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

    def _check_can_ever_fit(self, name: str, adapter: Adapter) -> None:
        if adapter.num_bytes > self.max_bytes:
            raise Unsupported(
                f"adapter {name!r} has {adapter.num_bytes} bytes and can never fit here: "
                f"adapters may have {self.max_bytes} together",
                "adapter",
            )

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
        if not any(self._slots):
            self._slots, self._stack = [], None
        elif any(self._loose()) or self._laid_bytes > 2 * self.num_bytes:
            self._lay()
        return self._stack

    def _place(self, name: str, adapter: Adapter) -> int:
        """Give an adapter a slot: a vacant one that it fits, or else one in a stack to be laid."""
        vacant = [index for index, slot in enumerate(self._slots) if slot is None]
        fitting = [index for index in vacant if self._stack is not None and self._stack.fits(index, adapter)]
        if self._stack is not None and fitting:
            self._stack.replace(fitting[0], adapter)
        elif not vacant:
            vacant.append(len(self._slots))
            self._slots.append(None)
        index = (fitting or vacant)[0]
        self._slots[index] = Slot(name, adapter.version, adapter.num_bytes, None if fitting else adapter)
        return index

    def _lay(self) -> None:
        """Lay the stack anew: what was left in vacant slots goes, and some are added of the newest adapter's kind."""
        while self._slots[-1] is None:
            self._slots.pop()
        adapters = [EMPTY if slot is None else self._adapter_in(index, slot) for index, slot in enumerate(self._slots)]
        newest = [*adapters, *self._loose()][-1]
        spare = [blank(newest)] * self._num_spare(newest.num_bytes)
        self._stack = stack_adapters([*adapters, *spare], self._num_layers)
        # as adapters count: all lie in the greatest precision of any, which laying them again would not change
        self._laid_bytes = self.num_bytes + len(spare) * newest.num_bytes
        for slot in self._slots:
            if slot is not None:
                slot.adapter = None
        self._slots += [None] * len(spare)

    def _num_spare(self, num_bytes: int) -> int:
        """How many vacant slots of so many bytes to lay: few, since every row's product runs over them as well."""
        num_living = sum(slot is not None for slot in self._slots)
        room = min(self.max_bytes - self.num_bytes, self.num_bytes // SPARE_SHARE)
        return min(num_living // SPARE_SHARE, room // max(num_bytes, 1))

    def _loose(self) -> list[Adapter]:
        """Those that are not in the stack yet."""
        return [slot.adapter for slot in self._slots if slot is not None and slot.adapter is not None]

    def _adapter_in(self, index: int, slot: Slot) -> Adapter:
        if slot.adapter is not None:
            return slot.adapter
        assert self._stack is not None
        return Adapter(self._stack.take(index), slot.version)

    def _retire(self, index: int) -> None:
        slot = self._slots[index]
        assert slot is not None
        slot.is_retired = True
        if not slot.num_users:
            self._drop(index)

    def _drop(self, index: int) -> None:
        self._slots[index] = None


EMPTY = Adapter({}, "")


def blank(like: Adapter) -> Adapter:
    """An adapter of the same ranks that changes nothing."""
    modules = {
        place: LowRank(mx.zeros_like(pair.a), mx.zeros_like(pair.b), 0.0) for place, pair in like.modules.items()
    }
    return Adapter(modules, "")


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(sorted(names)[:20]) or "none"

"""How a journal's bytes are laid out: frames of a length, a checksum and a payload. Knows no file and no meaning.

The checksum covers the length too and starts from a number of its own, so neither a flipped length nor a stretch of
zeros, as a power cut leaves them, passes for a record.
"""

from dataclasses import dataclass
from struct import Struct
from zlib import crc32

HEAD = Struct("<II")  # length of the payload, checksum
SEED = crc32(b"genserve journal 1")
MAX_PAYLOAD_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Damage:
    """Where reading stopped, and why. `num_bytes` are those from there to the end, none of which are read."""

    offset: int
    num_bytes: int
    reason: str

    @property
    def is_torn_tail(self) -> bool:
        """Whether it may be a last write that a crash cut short, rather than bytes that changed."""
        return self.reason == "cut short"


@dataclass(frozen=True, slots=True)
class Scan:
    """The payloads of a journal up to its first damage; `end` is where the next frame belongs."""

    payloads: tuple[bytes, ...]
    end: int
    damage: Damage | None


def frame(payload: bytes) -> bytes:
    """A payload as it stands in the file."""
    if not 0 < len(payload) <= MAX_PAYLOAD_BYTES:
        raise ValueError(f"a journal record has 1 to {MAX_PAYLOAD_BYTES} bytes; got {len(payload)}")
    return HEAD.pack(len(payload), checksum(payload)) + payload


def checksum(payload: bytes | memoryview) -> int:
    return crc32(payload, crc32(len(payload).to_bytes(4, "little"), SEED))


def scan(data: bytes) -> Scan:
    """Read frames until the bytes end or are not what was written."""
    view, offset, payloads = memoryview(data), 0, list[bytes]()
    while offset < len(data):
        reason = fault(view, offset)
        if reason is not None:
            return Scan(tuple(payloads), offset, Damage(offset, len(data) - offset, reason))
        length, _ = HEAD.unpack_from(view, offset)
        payloads.append(bytes(view[offset + HEAD.size : offset + HEAD.size + length]))
        offset += HEAD.size + length
    return Scan(tuple(payloads), offset, None)


def fault(view: memoryview, offset: int) -> str | None:
    """What is wrong with the frame at this place, if anything."""
    if len(view) - offset < HEAD.size:
        return "cut short"
    length, expected = HEAD.unpack_from(view, offset)
    if not 0 < length <= MAX_PAYLOAD_BYTES:
        return f"a length of {length}"
    payload = view[offset + HEAD.size : offset + HEAD.size + length]
    if len(payload) < length:
        return "cut short"
    return None if checksum(payload) == expected else "a wrong checksum"

"""BlockPool: which blocks of the cache are free, shared, or kept for who may ask again. Knows no array.

A full block is remembered under a digest of everything that determines its contents: model, adapter and its version,
tenant, and all tokens up to its end. So whoever holds the same beginning finds it, while it is in use and after.
Blocks nobody uses are taken back least recently used first. Block 0 is never given out: tables are padded with it.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from struct import pack

import numpy as np
from numpy.typing import NDArray

Digest = bytes


class BlockPool:
    """Reference counts and the prefix cache. Owned by the Scheduler."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.references: NDArray[np.int32] = np.zeros(num_blocks, np.int32)
        self._free = list(range(num_blocks - 1, 0, -1))
        self._digest_of: dict[int, Digest] = {}
        self._block_of: dict[Digest, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # remembered and unused, oldest first

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give out now."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - 1 - self.num_available

    @property
    def num_remembered(self) -> int:
        return len(self._digest_of)

    def allocate(self) -> int:
        """A block for one owner. There must be one: ask `num_available` first."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        assert self.references[block] == 0
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more owner for a block."""
        if self.references[block] == 0:
            del self._idle[block]
        self.references[block] += 1

    def release(self, block: int) -> None:
        """One owner less; a block without owners is kept if it is remembered, else free."""
        assert self.references[block] > 0
        self.references[block] -= 1
        if self.references[block]:
            return
        if block in self._digest_of:
            self._idle[block] = None
        else:
            self._free.append(block)

    def remember(self, block: int, digest: Digest) -> None:
        """A full block can be found from now on; of two with equal contents the first is kept."""
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def find(self, digest: Digest) -> int | None:
        """The block of these contents, if it is still there. It is not owned until shared."""
        return self._block_of.get(digest)

    def is_idle(self, block: int) -> bool:
        return block in self._idle

    def _forget(self, block: int) -> None:
        del self._block_of[self._digest_of.pop(block)]


def root_digest(model: str, adapter: str | None, tenant: str) -> Digest:
    """Where a chain of blocks starts. Lengths go in too, so that no two triples read alike."""
    hasher = blake2b(digest_size=16)
    for part in (model, "" if adapter is None else "+" + adapter, tenant):
        data = part.encode("utf-8", "surrogatepass")
        hasher.update(pack("<Q", len(data)))
        hasher.update(data)
    return hasher.digest()


def next_digest(previous: Digest, tokens: Sequence[int]) -> Digest:
    """The digest of a block that follows `previous` and holds `tokens`."""
    return blake2b(previous + array("i", tokens).tobytes(), digest_size=16).digest()

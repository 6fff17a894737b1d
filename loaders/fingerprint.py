"""Fingerprint: a short name for a model's content, cheap enough to take at every start. Knows no arithmetic.

It is SHA-256 over the config, the headers, the sizes, and SAMPLE_BYTES from the middle of every tensor. A full read of
8 GB takes seconds; training or quantizing again changes every tensor, so a sample of each one tells.
"""

import hashlib
from collections.abc import Iterable

SAMPLE_BYTES = 64


def fingerprint(parts: Iterable[bytes | str | int]) -> str:
    """One name for all parts, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        digest.update(len(content).to_bytes(8, "little") + content)  # the length keeps ("a", "b") and ("ab", "") apart
    return digest.hexdigest()

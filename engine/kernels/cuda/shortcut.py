"""Shortcut: eight bytes that MLX takes for a kernel's code once it has seen the code.

MLX keeps the kernels it has loaded under their name and a hash of their code, and hashes all of the code whenever one
runs: ten microseconds each, where a token is two hundred kernels. Its hash is libstdc++'s, each step of which can be
undone, so there is a word of eight bytes for every hash. Whether it still finds kernels so is tried at start.
"""

import struct
from functools import cache

import mlx.core as mx
import numpy as np

SEED, FACTOR, MASK = 0xC70F6907, 0xC6A4A7935BD1E995, (1 << 64) - 1
INVERSE = pow(FACTOR, -1, 1 << 64)


def mixed(value: int) -> int:
    """Its own inverse."""
    return value ^ (value >> 47)


def hash_of(code: bytes) -> int:
    """As std::hash of a string gives it."""
    state, whole = SEED ^ (len(code) * FACTOR & MASK), len(code) // 8 * 8
    for (word,) in struct.iter_unpack("<Q", code[:whole]):
        state = ((state ^ (mixed(word * FACTOR & MASK) * FACTOR & MASK)) * FACTOR) & MASK
    if whole < len(code):
        state = ((state ^ int.from_bytes(code[whole:], "little")) * FACTOR) & MASK
    return mixed(mixed(state) * FACTOR & MASK)


def word_for(code: bytes) -> bytes:
    """Eight bytes with the same hash."""
    state = mixed(mixed(hash_of(code)) * INVERSE & MASK) * INVERSE & MASK
    data = state ^ SEED ^ (8 * FACTOR & MASK)
    return struct.pack("<Q", mixed(data * INVERSE & MASK) * INVERSE & MASK)


PROBE = """
.version 7.8
.target sm_90
.address_size 64
.visible .entry genserve_probe(.param .u64 out) {
  .reg .b64 %a<3>;
  .reg .b32 %v<2>;
  ld.param.u64 %a1, [out];
  cvta.to.global.u64 %a2, %a1;
  mov.u32 %v1, 42;
  st.global.u32 [%a2], %v1;
  ret;
}
"""


@cache
def is_open() -> bool:
    """Whether MLX finds a kernel by the word."""
    code = PROBE.encode() + b"\0"

    def probe(source: bytes) -> int:
        out = mx.fast.precompiled_cuda_kernel(
            name="genserve_probe",
            compiled_source=source,
            inputs=[],
            output_shapes=[(4,)],
            output_dtypes=[mx.int32],
            scalars=[],
            grid=(1, 1, 1),
            threadgroup=(1, 1, 1),
        )[0]
        return int(np.array(out)[0])

    try:
        return probe(code) == 42 and probe(word_for(code)) == 42
    except RuntimeError:
        return False

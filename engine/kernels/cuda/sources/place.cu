// Rows of prompts: queries and keys normed and turned, keys and values written to the cache in place. A warp a vector.
const int lane = threadIdx.x & 31, row = blockIdx.x, head = blockIdx.y * (blockDim.x / 32) + (threadIdx.x >> 5);
if (head < HEADS + 2 * KV) {
  const size_t slot = slots[row];
  const unsigned short* from = (const unsigned short*)qkv + ((size_t)row * (HEADS + 2 * KV) + head) * D;
  if (head < HEADS + KV) {
    Vector<D, NORMED> v;
    v.load(from, (const float2*)turns + (size_t)row * (D / 2), lane);
    if (head < HEADS)
      v.store((unsigned short*)out + ((size_t)row * HEADS + head) * D, (const unsigned short*)q_norm, EPS, SCALE, lane);
    else
      v.store((unsigned short*)keys + (slot * KV + head - HEADS) * D, (const unsigned short*)k_norm, EPS, 1.f, lane);
  } else if (lane < D / 8) {
    ((uint4*)((unsigned short*)values + (slot * KV + head - HEADS - KV) * D))[lane] = ((const uint4*)from)[lane];
  }
}

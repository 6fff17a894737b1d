// Rows of a quantized embedding, one block a token, eight columns a thread. `at`: which of the tokens, if not all of them.
const size_t token = tokens[GATHERED ? at[blockIdx.x] : blockIdx.x];
for (int k = threadIdx.x; k < K / 8; k += blockDim.x) {
  const float s = wide(((const unsigned short*)s0)[token * (K / GROUP) + k * 8 / GROUP]);
  const float b = wide(((const unsigned short*)b0)[token * (K / GROUP) + k * 8 / GROUP]);
  float v[8];
  if constexpr (BITS == 4) {
    const u32 w = w0[token * (K / 8) + k];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = (float)(w >> (4 * i) & 15) * s + b;
  } else {
    const uint2 w = ((const uint2*)w0)[token * (K / 8) + k];
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = (float)((i < 4 ? w.x : w.y) >> (8 * (i & 3)) & 255) * s + b;
  }
  ((uint4*)out)[(size_t)blockIdx.x * (K / 8) + k] =
      make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
}

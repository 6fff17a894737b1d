// Rows, normed if asked for, laid out by `place`; one block a row.
constexpr int OCTETS = (K / 8 + 255) / 256;
const int row = blockIdx.x;
__shared__ float sums[8];
__shared__ __align__(16) unsigned short line[K];  // place() of row 0 in a tile of one row: chunks of 8 stay whole
uint4 v[OCTETS];
float sum = 0.f;
#pragma unroll
for (int i = 0; i < OCTETS; i++) {
  const int k = threadIdx.x + i * 256;
  v[i] = k < K / 8 ? ((const uint4*)x)[(size_t)(GATHERED ? at[row] : row) * (K / 8) + k] : make_uint4(0, 0, 0, 0);
  sum += low(v[i].x) * low(v[i].x) + high(v[i].x) * high(v[i].x) + low(v[i].y) * low(v[i].y) + high(v[i].y) * high(v[i].y);
  sum += low(v[i].z) * low(v[i].z) + high(v[i].z) * high(v[i].z) + low(v[i].w) * low(v[i].w) + high(v[i].w) * high(v[i].w);
}
float factor = 1.f;
if constexpr (NORM) {
#pragma unroll
  for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = sum;
  __syncthreads();
  sum = 0.f;
#pragma unroll
  for (int w = 0; w < 8; w++) sum += sums[w];
  factor = rsqrtf(sum / K + EPS);
}
#pragma unroll
for (int i = 0; i < OCTETS; i++) {
  const int k = threadIdx.x + i * 256;
  if (k < K / 8) {
    const u32 words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
    uint4 f = make_uint4(0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u);
    if constexpr (NORM) f = ((const uint4*)norm)[k];
    const u32 factors[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      line[place<ORDER, 1>(0, k * 8 + 2 * j, K)] = narrow(low(words[j]) * factor * low(factors[j]));
      line[place<ORDER, 1>(0, k * 8 + 2 * j + 1, K)] = narrow(high(words[j]) * factor * high(factors[j]));
    }
  }
}
__syncthreads();
for (int k = threadIdx.x; k < K / 8; k += 256) {
  const int chunk = k & 15;
  const size_t tile = ((size_t)(row / TOKENS) * (K / 128) + (k >> 4)) * (TOKENS * 16) + (chunk >> 3) * (TOKENS * 8);
  ((uint4*)out)[tile + row % TOKENS * 8 + ((chunk & 7) ^ (row & 7))] = ((const uint4*)line)[k];
}

// What adapters add to their rows: `added`, if there is any, plus scale * low B, of all modules side by side. A block
// has one tile of rows and 512 columns, four a thread. `low` comes from `shrink`, in spans to be summed.
constexpr int STRIDE = MODULES * (RANK + 4), WIDTH = N0 + N1 + N2;
const int tile = blockIdx.y, adapter = tiles[tile * 10], count = tiles[tile * 10 + 1];
if (count == 0) return;
__shared__ __align__(16) float scaled[MODULES * RANK * 8];  // (module, rank, row)
const int start0 = adapter < 0 || !(present & 1) ? 0 : starts0[adapter];
const int start1 = adapter < 0 || !(present & 2) ? 0 : starts1[adapter];
const int start2 = adapter < 0 || !(present & 4) ? 0 : starts2[adapter];
const int rank0 = adapter < 0 || !(present & 1) ? 0 : starts0[adapter + 1] - start0;
const int rank1 = adapter < 0 || !(present & 2) ? 0 : starts1[adapter + 1] - start1;
const int rank2 = adapter < 0 || !(present & 4) ? 0 : starts2[adapter + 1] - start2;
for (int i = threadIdx.x; i < MODULES * RANK * 8; i += 128) {
  const int m = i / (RANK * 8), r = i / 8 % RANK, n = i % 8;
  float sum = 0.f, square = 0.f;
  if (r < (m == 0 ? rank0 : m == 1 ? rank1 : rank2) && n < count) {
    const float* from = parts + ((size_t)tile * 8 + n) * STRIDE + m * (RANK + 4);
#pragma unroll
    for (int s = 0; s < SPANS; s++) {
      sum += from[(size_t)s * gridDim.y * 8 * STRIDE + r];
      if constexpr (NORM) square += from[(size_t)s * gridDim.y * 8 * STRIDE + RANK];
    }
    if constexpr (NORM) sum *= rsqrtf(square / K + EPS);
    sum *= m == 0 ? scale0[start0 + r] : m == 1 ? scale1[start1 + r] : scale2[start2 + r];
  }
  scaled[i] = sum;
}
__syncthreads();
const int column = (blockIdx.x * 128 + threadIdx.x) * 4;
if (column < WIDTH) {
  const int m = column < N0 ? 0 : column < N0 + N1 ? 1 : 2;
  const int width = m == 0 ? N0 : m == 1 ? N1 : N2, rank = m == 0 ? rank0 : m == 1 ? rank1 : rank2;
  const bf16* b = (m == 0 ? b0 : m == 1 ? b1 : b2) + (size_t)(m == 0 ? start0 : m == 1 ? start1 : start2) * width;
  b += column - (m == 0 ? 0 : m == 1 ? N0 : N0 + N1);
  float y[8][4] = {};
#pragma unroll 8
  for (int r = 0; r < rank; r++) {
    const uint2 v = __ldg((const uint2*)(b + (size_t)r * width));
    const float4 p = *(const float4*)(scaled + (m * RANK + r) * 8), q = *(const float4*)(scaled + (m * RANK + r) * 8 + 4);
    const float by[8] = {p.x, p.y, p.z, p.w, q.x, q.y, q.z, q.w};
#pragma unroll
    for (int n = 0; n < 8; n++) {
      y[n][0] += by[n] * low(v.x), y[n][1] += by[n] * high(v.x);
      y[n][2] += by[n] * low(v.y), y[n][3] += by[n] * high(v.y);
    }
  }
#pragma unroll
  for (int n = 0; n < 8; n++) {
    if (n < count) {
      const size_t at = (size_t)tiles[tile * 10 + 2 + n] * WIDTH + column;
      if constexpr (ADDED) {
        const uint2 v = *(const uint2*)(added + at);
        y[n][0] += low(v.x), y[n][1] += high(v.x), y[n][2] += low(v.y), y[n][3] += high(v.y);
      }
      *(uint2*)(out + at) = make_uint2(pack(y[n][0], y[n][1]), pack(y[n][2], y[n][3]));
    }
  }
}

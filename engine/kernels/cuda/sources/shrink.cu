// Rows of one adapter, up to eight, times its left matrices: low = x A', the first half of what an adapter adds. A
// block has a span of the inner dimension of one module, and its four warps part it; whoever reads `low` sums the
// spans. x may have to be normed first: then the norm's factor, which needs all of a row, is left to the reader, who
// finds the span's sum of squares behind the RANK sums. `tiles`: (adapter or -1, count, rows).
constexpr int SPAN = K / SPANS, STRIDE = MODULES * (RANK + 4);
const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
const int tile = blockIdx.x, module = blockIdx.y, span = blockIdx.z;
const int adapter = tiles[tile * 10], count = tiles[tile * 10 + 1];
__shared__ float sums[4][RANK * 8], squares[4][8];
const bf16* a = module == 0 ? a0 : module == 1 ? a1 : a2;
const int* starts = module == 0 ? starts0 : module == 1 ? starts1 : starts2;
const int start = adapter < 0 || !(present >> module & 1) ? 0 : starts[adapter];
const int rank = adapter < 0 || !(present >> module & 1) ? 0 : starts[adapter + 1] - start;
if (rank == 0 || count == 0) return;
const int row = tiles[tile * 10 + 2 + g];
float acc[RANK / 16][4] = {}, square = 0.f;
const int first = span * SPAN + warp * (SPAN / 4) + 8 * t;
#pragma unroll 2
for (int k = first; k < first + SPAN / 4; k += 32) {
  uint4 v = make_uint4(0, 0, 0, 0);
  if (g < count) {
    if constexpr (ORDER == 0) {
      v = load16(x + (size_t)row * K + k);
    } else {
      u32 words[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        words[i] = x[place<ORDER, TOKENS>(row, k + 2 * i, K)] | (u32)x[place<ORDER, TOKENS>(row, k + 2 * i + 1, K)] << 16;
      v = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
  if constexpr (NORM) {
    const uint4 f = load16(norm + k);
    square += low(v.x) * low(v.x) + high(v.x) * high(v.x) + low(v.y) * low(v.y) + high(v.y) * high(v.y);
    square += low(v.z) * low(v.z) + high(v.z) * high(v.z) + low(v.w) * low(v.w) + high(v.w) * high(v.w);
    v = make_uint4(mul2(v.x, f.x), mul2(v.y, f.y), mul2(v.z, f.z), mul2(v.w, f.w));
  }
#pragma unroll
  for (int m = 0; m < RANK / 16; m++) {
    if (m * 16 < rank) {
      const uint4 none = make_uint4(0, 0, 0, 0);
      const bf16* from = a + (size_t)(start + m * 16 + g) * K + k;
      const uint4 p = m * 16 + g < rank ? load16(from) : none, q = m * 16 + g + 8 < rank ? load16(from + 8 * K) : none;
      mma(acc[m], p.x, q.x, p.y, q.y, v.x, v.y);
      mma(acc[m], p.z, q.z, p.w, q.w, v.z, v.w);
    }
  }
}
#pragma unroll
for (int m = 0; m < RANK / 16; m++)
#pragma unroll
  for (int e = 0; e < 4; e++) sums[warp][(m * 16 + g + (e >> 1) * 8) * 8 + 2 * t + (e & 1)] = acc[m][e];
square += __shfl_xor_sync(~0u, square, 1);
square += __shfl_xor_sync(~0u, square, 2);
if (t == 0) squares[warp][g] = square;
__syncthreads();
float* to = out + ((size_t)span * gridDim.x + tile) * 8 * STRIDE + module * (RANK + 4);
for (int i = threadIdx.x; i < RANK * 8; i += 128)
  to[i % 8 * STRIDE + i / 8] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
if (threadIdx.x < 8) {
  const int n = threadIdx.x;
  to[n * STRIDE + RANK] = (squares[0][n] + squares[1][n]) + (squares[2][n] + squares[3][n]);
}

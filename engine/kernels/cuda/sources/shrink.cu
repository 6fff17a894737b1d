// Rows of one adapter, up to eight, times its left matrices: x A', the first half of what an adapter adds. A
// block has a span of the inner dimension of one module, and its warps part it; whoever reads these sums the spans.
// x may have to be normed first: then the norm's factor, which needs all of a row, is left to the reader, who finds
// the span's sum of squares behind the RANK sums. `tiles`: (adapter or -1, count, rows); `table`: where each module's
// left and right matrices and slots (first rank row, rank, scale) are. This is the `share`-th of them, APART in a launch
// that gives `lows`, or in that of the product that x is for, with a place of their own for them.
constexpr int SPAN = K / SPANS, SHARE = SPAN / SHRINK_WARPS, STRIDE = MODULES * (RANK + 4);
const int thread = threadIdx.x % (SHRINK_WARPS * 32), lane = thread & 31, warp = thread >> 5, g = lane >> 2, t = lane & 3;
const int tile = share % num_tiles, module = share / num_tiles % MODULES, span = share / num_tiles / MODULES;
const int count = tiles[tile * 10 + 1];
float* squares = scratch + SHRINK_WARPS * RANK * 8;  // behind (SHRINK_WARPS, RANK, 8)
const int4 slot = find_slot(module, tile);
if (slot.y > 0 && count > 0) {
  const bf16* left = (const bf16*)table[module * 3] + (size_t)slot.x * K;
  const int row = tiles[tile * 10 + 2 + g];
  constexpr int STEPS = SHARE / 32, MOST = RANK == 16 ? AHEAD : RANK == 32 ? 2 : 1;
  constexpr int HALF_MOST = MOST > 1 ? MOST / 2 : 1;
  constexpr int ABREAST = STEPS % MOST == 0 ? MOST : STEPS % HALF_MOST == 0 ? HALF_MOST : 1;  // loads before a use
  const uint4 none = make_uint4(0, 0, 0, 0);
  float acc[RANK / 16][4] = {}, square = 0.f;
#pragma unroll 1
  for (int step = 0; step < STEPS; step += ABREAST) {
    uint4 v[ABREAST], p[ABREAST][RANK / 16], q[ABREAST][RANK / 16];
#pragma unroll
    for (int i = 0; i < ABREAST; i++) {
      const int k = span * SPAN + warp * SHARE + (step + i) * 32 + 8 * t;
#pragma unroll
      for (int m = 0; m < RANK / 16; m++) {
        const bf16* from = left + (size_t)(m * 16 + g) * K + k;
        p[i][m] = m * 16 + g < slot.y ? __ldg((const uint4*)from) : none;
        q[i][m] = m * 16 + g + 8 < slot.y ? __ldg((const uint4*)(from + 8 * K)) : none;
      }
      v[i] = none;
      if (g < count) {
        if constexpr (X_ORDER == 0) {
          v[i] = *(const uint4*)(x + (size_t)row * K + k);
        } else if constexpr (X_ORDER == 4 && SHARE % 128 == 0 && ABREAST % 4 == 0) {
          v[i] = *(const uint4*)(x + place<X_ORDER, X_TOKENS>(row, k - i % 4 * 31, K));  // word j: k and k + 4 of step j
        } else {
          constexpr int NEXT = X_ORDER == 4 ? 1 : 2;  // a word holds k and k + 4, or k and k + 1
          v[i].x = *(const u32*)(x + place<X_ORDER, X_TOKENS>(row, k, K));
          v[i].y = *(const u32*)(x + place<X_ORDER, X_TOKENS>(row, k + NEXT, K));
          v[i].z = *(const u32*)(x + place<X_ORDER, X_TOKENS>(row, k + 2 * NEXT, K));
          v[i].w = *(const u32*)(x + place<X_ORDER, X_TOKENS>(row, k + 3 * NEXT, K));
        }
      }
    }
    if constexpr (X_ORDER == 4 && SHARE % 128 == 0 && ABREAST % 4 == 0) {
#pragma unroll
      for (int i = 0; i < ABREAST; i += 4) turn(v[i], v[i + 1], v[i + 2], v[i + 3]);
    }
#pragma unroll
    for (int i = 0; i < ABREAST; i++) {
      uint4 u = v[i];
      if constexpr (NORM) {
        const uint4 f = *(const uint4*)(norm + span * SPAN + warp * SHARE + (step + i) * 32 + 8 * t);
        square += low(u.x) * low(u.x) + high(u.x) * high(u.x) + low(u.y) * low(u.y) + high(u.y) * high(u.y);
        square += low(u.z) * low(u.z) + high(u.z) * high(u.z) + low(u.w) * low(u.w) + high(u.w) * high(u.w);
        u = make_uint4(mul2(u.x, f.x), mul2(u.y, f.y), mul2(u.z, f.z), mul2(u.w, f.w));
      }
#pragma unroll
      for (int m = 0; m < RANK / 16; m++) {
        const uint4 a = pairs<X_ORDER>(p[i][m]), b = pairs<X_ORDER>(q[i][m]);
        mma(acc[m], a.x, b.x, a.y, b.y, u.x, u.y);
        mma(acc[m], a.z, b.z, a.w, b.w, u.z, u.w);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < RANK / 16; m++)
#pragma unroll
    for (int e = 0; e < 4; e++)
      scratch[(warp * RANK + m * 16 + g + (e >> 1) * 8) * 8 + 2 * t + (e & 1)] = acc[m][e];
  square += __shfl_xor_sync(~0u, square, 1);
  square += __shfl_xor_sync(~0u, square, 2);
  if (t == 0) squares[warp * 8 + g] = square;
  meet_shrinkers();
#if APART
  float* to = lows;
#else
  float* to = (float*)table[10];
#endif
  to += ((size_t)span * num_tiles + tile) * 8 * STRIDE + module * (RANK + 4);
  for (int i = thread; i < (RANK + 1) * 8; i += SHRINK_WARPS * 32) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < SHRINK_WARPS; w++) sum += i < RANK * 8 ? scratch[w * RANK * 8 + i] : squares[w * 8 + i % 8];
    to[i % 8 * STRIDE + i / 8] = sum;
  }
}

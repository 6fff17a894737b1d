// y = x W' for 1 to 8 rows of x: the weights are read once, as the left operand of matrix products whose right
// operand is the rows. A block has 16 outputs (of both matrices, if gated) and its warps part the inner dimension.
// While a block's groups times rows fit in 8 columns, nibbles go in as they are, plus 128: columns are (group, row), and
// scale and bias meet the sums of a group instead of every weight. STAGED: the block holds x in shared memory, in the
// order that the nibbles come in, with each group's sum.
constexpr int OCT = 16 / BITS, BLOCK = 32 * OCT, RUN = 8 * OCT, SUPER = 4 * BLOCK;
constexpr int SUPERS = K / SUPER, PER_WARP = SUPERS / WARPS, GROUPS = SUPER / GROUP, REGS = (GROUPS + 1) / 2;
constexpr int MATS = GATED ? 2 : 1, ITEMS = MATS * PER_WARP, THREADS = WARPS * 32;
constexpr int TILES = (GATED ? N0 : N0 + N1 + N2) / 16, WIDTH = TILES * 16;
constexpr size_t ROW = (size_t)K * BITS / 8, SCALES = (size_t)K / GROUP * 2;
constexpr int HALVES = GROUP >= BLOCK ? 1 : BLOCK / GROUP, COLUMNS = 8 / HALVES;
const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
const int rows = GATHERED ? at_shape[0] : x_shape[0];
extern __shared__ char shared[];
uint4* staged = (uint4*)shared;
float* totals = (float*)(shared + (STAGED ? ROWS * K * 2 : 0));  // (K / BLOCK, 8): of a block's groups, by column
float* reduced = totals + (GROUPED ? K / BLOCK * 8 : 0);
float* squares = reduced + WARPS * MATS * 128;

struct Piece {
  uint4 w[2][4];
  u32 s[2][REGS], b[2][REGS];
};
auto fetch = [&](Piece& p, int tile, int item) {
  int m = GATED ? item / PER_WARP : 0, row = tile * 16;
  if (!GATED && N1 > 0) {
    if (row >= N0 + N1) { m = 2; row -= N0 + N1; }
    else if (row >= N0) { m = 1; row -= N0; }
  }
  const int super = warp * PER_WARP + item % PER_WARP;
  const char* w = (const char*)(m == 0 ? w0 : m == 1 ? w1 : w2);
  const char* s = (const char*)(m == 0 ? s0 : m == 1 ? s1 : s2);
  const char* b = (const char*)(m == 0 ? b0 : m == 1 ? b1 : b2);
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const size_t line = row + g + 8 * r;
#pragma unroll
    for (int i = 0; i < 4; i++) p.w[r][i] = stream16(w + line * ROW + super * 256 + i * 64 + t * 16);
    const u32* ps = (const u32*)(s + line * SCALES + super * GROUPS * 2);
    const u32* pb = (const u32*)(b + line * SCALES + super * GROUPS * 2);
    if constexpr (REGS % 4 == 0) {
#pragma unroll
      for (int i = 0; i < REGS; i += 4) {
        const uint4 vs = __ldg((const uint4*)(ps + i)), vb = __ldg((const uint4*)(pb + i));
        p.s[r][i] = vs.x, p.s[r][i + 1] = vs.y, p.s[r][i + 2] = vs.z, p.s[r][i + 3] = vs.w;
        p.b[r][i] = vb.x, p.b[r][i + 1] = vb.y, p.b[r][i + 2] = vb.z, p.b[r][i + 3] = vb.w;
      }
    } else if constexpr (REGS == 2) {
      const uint2 vs = __ldg((const uint2*)ps), vb = __ldg((const uint2*)pb);
      p.s[r][0] = vs.x, p.s[r][1] = vs.y;
      p.b[r][0] = vb.x, p.b[r][1] = vb.y;
    } else {
      p.s[r][0] = __ldg(ps);
      p.b[r][0] = __ldg(pb);
    }
  }
};
const int token = GROUPED ? g % COLUMNS : g;
const bool loads = token < min(ROWS, rows) && (!GROUPED || g / COLUMNS == t * HALVES / 4);
auto match = [](uint4 v) -> uint4 {
  if constexpr (GROUPED && BITS == 8) return crossed(v);
  else return pairs<BITS>(v);
};
const u32 half = GROUP * 4 == BLOCK ? (t & 1 ? 0x3232u : 0x1010u) : (t >> 1 ? 0x3232u : 0x1010u);
auto pick = [&](const u32* r, int i) -> u32 {
  if constexpr (GROUP >= BLOCK) {
    const int c = i * BLOCK / GROUP;
    return both(r[c / 2], c & 1 ? 0x3232u : 0x1010u);
  } else if constexpr (GROUP * 2 == BLOCK) {
    return both(r[i], half);
  } else {
    return both(t & 2 ? r[2 * i + 1] : r[2 * i], half);
  }
};

Piece now, next;
fetch(now, blockIdx.x, 0);
if constexpr (STAGED) {
  float sums[ROWS];
#pragma unroll
  for (int n = 0; n < ROWS; n++) sums[n] = 0.f;
  for (int k = threadIdx.x; k < K / 8; k += THREADS) {
    uint4 f, v[ROWS];
    if constexpr (NORM) f = __ldg((const uint4*)norm + k);
    const int o = k % OCT, tt = (k / OCT) % 4, block = k / (4 * OCT);
#pragma unroll
    for (int n = 0; n < ROWS; n++)
      v[n] = n < rows ? __ldg((const uint4*)x + (size_t)(GATHERED ? at[n] : n) * (K / 8) + k) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int n = 0; n < ROWS; n++) {
      if constexpr (NORM) {
        const float a = low(v[n].x) * low(v[n].x) + high(v[n].x) * high(v[n].x) + low(v[n].y) * low(v[n].y);
        const float b = high(v[n].y) * high(v[n].y) + low(v[n].z) * low(v[n].z) + high(v[n].z) * high(v[n].z);
        sums[n] += a + b + low(v[n].w) * low(v[n].w) + high(v[n].w) * high(v[n].w);
        v[n] = make_uint4(mul2(v[n].x, f.x), mul2(v[n].y, f.y), mul2(v[n].z, f.z), mul2(v[n].w, f.w));
      }
      if constexpr (GROUPED) {
        constexpr int SPAN = BLOCK / HALVES / 8;  // octets, which neighbouring lanes have
        float total = low(v[n].x) + high(v[n].x) + low(v[n].y) + high(v[n].y);
        total += low(v[n].z) + high(v[n].z) + low(v[n].w) + high(v[n].w);
#pragma unroll
        for (int d = 1; d < SPAN; d <<= 1) total += __shfl_xor_sync(__activemask(), total, d);
        if (k % SPAN == 0) totals[block * 8 + k % (4 * OCT) / SPAN * COLUMNS + n] = total;
      }
      staged[((block * OCT + o) * ROWS + n) * 4 + tt] = match(v[n]);
    }
  }
  if constexpr (NORM) {
#pragma unroll
    for (int n = 0; n < ROWS; n++) {
#pragma unroll
      for (int d = 16; d; d >>= 1) sums[n] += __shfl_xor_sync(~0u, sums[n], d);
      if (lane == 0) squares[warp * 8 + n] = sums[n];
    }
  }
  __syncthreads();
}
auto activations = [&](int super, int i, int o) -> uint4 {
  uint4 v = make_uint4(0, 0, 0, 0);
  if constexpr (STAGED) {
    if (loads) v = staged[(((super * 4 + i) * OCT + o) * ROWS + token) * 4 + t];
  } else {
    if (loads) v = match(__ldg((const uint4*)x + ((size_t)token * K + super * SUPER + i * BLOCK + t * RUN) / 8 + o));
  }
  return v;
};
for (int tile = blockIdx.x; tile < TILES; tile += gridDim.x) {
  float acc[MATS][4] = {};
#pragma unroll
  for (int item = 0; item < ITEMS; item++) {
    const bool last = item + 1 == ITEMS;
    const int other = last ? tile + gridDim.x : tile;
    if (other < TILES) {
      fetch(next, other, last ? 0 : item + 1);
    } else if (AFTER > 0 && threadIdx.x == 0) {  // the memory's pause at the end: the next kernel's weights, into L2
      const size_t share = (size_t)AFTER / gridDim.x / 16 * 16;
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"((const char*)after + blockIdx.x * share), "r"((u32)share));
    }
    const int super = warp * PER_WARP + item % PER_WARP;
    float* sum = acc[item / PER_WARP];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const u32 sa = pick(now.s[0], i), ba = pick(now.b[0], i), sb = pick(now.s[1], i), bb = pick(now.b[1], i);
      if constexpr (GROUPED) {
        float low_sum[4] = {}, high_sum[4] = {};
#pragma unroll
        for (int o = 0; o < OCT; o++) {
          const uint4 v = activations(super, i, o);
#pragma unroll
          for (int h = 0; h < BITS / 4; h++) {
            u32 a[4], b[4];
            nibbles(word(now.w[0][i], o * BITS / 4 + h), a);
            nibbles(word(now.w[1][i], o * BITS / 4 + h), b);
            if constexpr (BITS == 4) {
              times<BITS>(low_sum, a, b, v);
            } else {
              mma(low_sum, a[0], b[0], a[2], b[2], h ? v.z : v.x, h ? v.w : v.y);
              mma(high_sum, a[1], b[1], a[3], b[3], h ? v.z : v.x, h ? v.w : v.y);
            }
          }
        }
        const float2 total = *(const float2*)(totals + (super * 4 + i) * 8 + 2 * t);
        constexpr float OFFSET = BITS == 4 ? -128.f : -2176.f;
        const float s0f = low(sa), s1f = low(sb), b0f = fmaf(OFFSET, s0f, low(ba)), b1f = fmaf(OFFSET, s1f, low(bb));
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float q = BITS == 4 ? low_sum[j] : fmaf(16.f, high_sum[j], low_sum[j]);
          sum[j] = fmaf(j < 2 ? s0f : s1f, q, fmaf(j < 2 ? b0f : b1f, j & 1 ? total.y : total.x, sum[j]));
        }
      } else {
#pragma unroll
        for (int o = 0; o < OCT; o++) {
          const uint4 v = activations(super, i, o);
          u32 a[4], b[4];
          widen<BITS>(word(now.w[0][i], o * BITS / 4), word(now.w[0][i], o * BITS / 4 + 1), sa, ba, a);
          widen<BITS>(word(now.w[1][i], o * BITS / 4), word(now.w[1][i], o * BITS / 4 + 1), sb, bb, b);
          times<BITS>(sum, a, b, v);
        }
      }
    }
    now = next;
  }
#pragma unroll
  for (int m = 0; m < MATS; m++) {
    float* place = reduced + (warp * MATS + m) * 128;
    *(float2*)(place + g * 8 + 2 * t) = make_float2(acc[m][0], acc[m][1]);
    *(float2*)(place + (g + 8) * 8 + 2 * t) = make_float2(acc[m][2], acc[m][3]);
  }
  __syncthreads();
  for (int index = threadIdx.x; index < 16 * ROWS; index += THREADS) {
    const int r = index & 15, n = index >> 4;
    if (n < rows) {
      float y = 0.f, up = 0.f, factor = 1.f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
#pragma unroll
        for (int c = 0; c < (GROUPED ? HALVES : 1); c++) {
          y += reduced[w * MATS * 128 + r * 8 + c * COLUMNS + n];
          if (GATED) up += reduced[(w * MATS + 1) * 128 + r * 8 + c * COLUMNS + n];
        }
      }
      if constexpr (NORM) {
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += squares[w * 8 + n];
        factor = rsqrtf(sum / K + EPS);
      }
      y *= factor;
      const size_t place = (size_t)n * WIDTH + tile * 16 + r;
      if constexpr (GATED) {
        up *= factor;
        if constexpr (ADDED) {
          y += wide(((const unsigned short*)added)[(ADDED == 2 ? 0 : (size_t)n * 2 * WIDTH) + tile * 16 + r]);
          up += wide(((const unsigned short*)added)[(ADDED == 2 ? 0 : (size_t)n * 2 * WIDTH) + WIDTH + tile * 16 + r]);
        }
        y = y / (1.f + __expf(-y)) * up;
      } else if constexpr (ADDED) {
        y += wide(((const unsigned short*)added)[ADDED == 2 ? tile * 16 + r : place]);
      }
      if constexpr (FLOAT_OUT) ((float*)out)[place] = y;
      else ((unsigned short*)out)[place] = narrow(y);
    }
  }
  __syncthreads();
}

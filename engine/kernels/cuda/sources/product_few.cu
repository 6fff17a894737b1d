// y = x W' for 1 to 8 rows of x: the weights are read once, as the left operand of matrix products whose right
// operand is the rows. A block has 16 outputs (of both matrices, if gated) and its warps part the inner dimension.
// While a block's groups times rows fit in 8 columns, nibbles go in as they are, plus 128: columns are (group, row), and
// scale and bias meet the sums of a group instead of every weight. STAGED: the block holds x in shared memory, in the
// order that the nibbles come in, with each group's sum. ADAPTED: the launch's first blocks are those of `shrink`, and
// every other one waits for all of them before it adds what adapters make of its columns. They are started first, and
// wait for nobody.
constexpr int OCT = 16 / BITS, BLOCK = 32 * OCT, RUN = 8 * OCT, SUPER = 4 * BLOCK;
constexpr int SUPERS = K / SUPER, PER_WARP = SUPERS / WARPS;
constexpr int MATS = GATED ? 2 : 1, ITEMS = MATS * PER_WARP, THREADS = WARPS * 32;
constexpr int TILES = (GATED ? N0 : N0 + N1 + N2) / 16, WIDTH = TILES * 16;
constexpr size_t ROW = (size_t)K * BITS / 8, SCALES = (size_t)K / GROUP * 2;
constexpr int HALVES = GROUP >= BLOCK ? 1 : BLOCK / GROUP, COLUMNS = 8 / HALVES;
const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
const int block = blockIdx.x - num_shrinking, blocks = gridDim.x - num_shrinking;
extern __shared__ char shared[];
uint4* staged = (uint4*)shared;
float* totals = (float*)(shared + (STAGED ? ROWS * K * 2 : 0));  // (K / BLOCK, 8): of a block's groups, by column
float* reduced = totals + (GROUPED ? K / BLOCK * 8 : 0);
float* squares = reduced + WARPS * MATS * 128;

// Weights come by halves of a super-block, each lane its own, RING - 1 ahead; a super-block's scales with its first half,
// into one of as many places as are read and on their way together.
constexpr int HALF = 2048, SCALE_BYTES = SUPER / GROUP * 2, PLACES = RING / 2 + 1;
constexpr int RING_BYTES = RING * HALF + PLACES * 32 * SCALE_BYTES;
#if ADAPTED
float* scaled = squares + WARPS * 8;  // (MATS, RANK, ROWS)
char* ring = (char*)(scaled + MATS * RANK * ROWS) + warp * RING_BYTES;
#else
char* ring = (char*)(squares + WARPS * 8) + warp * RING_BYTES;
#endif
const u32 ring_at = (u32)__cvta_generic_to_shared(ring);
auto fetch = [&](int n) {  // the n-th half of this warp
  const int item = n / 2 % ITEMS, tile = block + n / 2 / ITEMS * blocks;
  if (tile < TILES) {
    int m = GATED ? item / PER_WARP : 0, row = tile * 16;
    if (!GATED && N1 > 0) {
      if (row >= N0 + N1) { m = 2; row -= N0 + N1; }
      else if (row >= N0) { m = 1; row -= N0; }
    }
    const int super = warp * PER_WARP + item % PER_WARP;
    const char* w = (const char*)(m == 0 ? w0 : m == 1 ? w1 : w2) + (size_t)(row + g) * ROW + super * 256 + (n & 1) * 128 + t * 16;
    const u32 to = ring_at + n % RING * HALF + lane * 16;
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int i = 0; i < 2; i++) copy_async<16>(to + (r * 2 + i) * 512, w + r * 8 * ROW + i * 64);
    if (n % 2 == 0) {
      const char* s = (const char*)(m == 0 ? s0 : m == 1 ? s1 : s2);
      const char* b = (const char*)(m == 0 ? b0 : m == 1 ? b1 : b2);
      const char* from = (lane & 1 ? b : s) + (size_t)(row + (lane >> 1)) * SCALES + super * SCALE_BYTES;
#pragma unroll
      for (int i = 0; i < SCALE_BYTES; i += 16)
        copy_async<(SCALE_BYTES < 16 ? SCALE_BYTES : 16)>(
            ring_at + RING * HALF + (n / 2 % PLACES * 32 + lane) * SCALE_BYTES + i, from + i);
    }
  }
  commit_copies();
};
const int token = GROUPED ? g % COLUMNS : g;
const bool loads = token < min(ROWS, rows) && (!GROUPED || g / COLUMNS == t * HALVES / 4);
auto match = [](uint4 v) -> uint4 {
  if constexpr (GROUPED && BITS == 8) return crossed(v);
  else return pairs<BITS>(v);
};
#pragma unroll
for (int n = 0; n < RING - 1; n++) fetch(n);
follow();
#if ADAPTED
__shared__ int place_of[8];  // of a row, among those of the tiles
__shared__ int4 slot_of[MODULES * 8];
if (threadIdx.x < 8) place_of[threadIdx.x] = -1;
__syncthreads();
for (int i = threadIdx.x; i < num_tiles * 8; i += THREADS)
  if (i % 8 < tiles[i / 8 * 10 + 1]) place_of[tiles[i / 8 * 10 + 2 + i % 8]] = i;
__syncthreads();
for (int i = threadIdx.x; i < MODULES * 8; i += THREADS) {
  const int m = i / 8, adapter = place_of[i % 8] < 0 ? -1 : tiles[place_of[i % 8] / 8 * 10];
  slot_of[i] = adapter < 0 || !(present >> m & 1) ? make_int4(0, 0, 0, 0) : ((const int4*)table[m * 3 + 2])[adapter];
}
auto adds = [&](int m, int n, int column, const float* of_matrix) -> float {  // what row n's adapter does, unnormed
  const int width = m == 0 ? N0 : m == 1 ? N1 : N2;
  const int4 slot = slot_of[m * 8 + n];
  const bf16* right = (const bf16*)table[m * 3 + 1] + (size_t)slot.x * width + column;
  float sum = 0.f;
#pragma unroll 16
  for (int k = 0; k < slot.y; k++) sum += of_matrix[k * ROWS + n] * wide(__ldg(right + (size_t)k * width));
  return sum;
};
#endif
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
      v[n] = n < rows ? load16((const uint4*)x + (size_t)(GATHERED ? at[n] : n) * (K / 8) + k) : make_uint4(0, 0, 0, 0);
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
    if (loads) v = match(load16((const uint4*)x + ((size_t)token * K + super * SUPER + i * BLOCK + t * RUN) / 8 + o));
  }
  return v;
};
int n = 0;
for (int tile = block; tile < TILES; tile += blocks) {
  float acc[MATS][4] = {};
#pragma unroll
  for (int m = 0; m < MATS; m++) {
    float* sum = acc[m];
#pragma unroll 1
    for (int part = 0; part < 2 * PER_WARP; part++, n++) {
      await_copies<RING - 2>();
      __syncwarp();
      fetch(n + RING - 1);
      const int super = warp * PER_WARP + part / 2;
      const char* w = ring + n % RING * HALF + lane * 16;
      const char* s = ring + RING * HALF + n / 2 % PLACES * 32 * SCALE_BYTES;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int i = part % 2 * 2 + h, group = (i * BLOCK + t * RUN) / GROUP;
        const uint4 wa = *(const uint4*)(w + h * 512), wb = *(const uint4*)(w + (2 + h) * 512);
        const unsigned short* line = (const unsigned short*)(s + g * 2 * SCALE_BYTES) + group;
        const u32 sa = line[0], ba = line[SCALE_BYTES / 2], sb = line[8 * SCALE_BYTES], bb = line[8 * SCALE_BYTES + SCALE_BYTES / 2];
        if constexpr (GROUPED) {
          float low_sum[4] = {}, high_sum[4] = {};
#pragma unroll
          for (int o = 0; o < OCT; o++) {
            const uint4 v = activations(super, i, o);
#pragma unroll
            for (int e = 0; e < BITS / 4; e++) {
              u32 a[4], b[4];
              nibbles(word(wa, o * BITS / 4 + e), a);
              nibbles(word(wb, o * BITS / 4 + e), b);
              if constexpr (BITS == 4) {
                times<BITS>(low_sum, a, b, v);
              } else {
                mma(low_sum, a[0], b[0], a[2], b[2], e ? v.z : v.x, e ? v.w : v.y);
                mma(high_sum, a[1], b[1], a[3], b[3], e ? v.z : v.x, e ? v.w : v.y);
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
            widen<BITS>(word(wa, o * BITS / 4), word(wa, o * BITS / 4 + 1), both(sa, 0x1010), both(ba, 0x1010), a);
            widen<BITS>(word(wb, o * BITS / 4), word(wb, o * BITS / 4 + 1), both(sb, 0x1010), both(bb, 0x1010), b);
            times<BITS>(sum, a, b, v);
          }
        }
      }
    }
  }
#pragma unroll
  for (int m = 0; m < MATS; m++) {
    float* place = reduced + (warp * MATS + m) * 128;
    *(float2*)(place + g * 8 + 2 * t) = make_float2(acc[m][0], acc[m][1]);
    *(float2*)(place + (g + 8) * 8 + 2 * t) = make_float2(acc[m][2], acc[m][3]);
  }
#if ADAPTED
  const int module = GATED || tile * 16 < N0 ? 0 : tile * 16 < N0 + N1 ? 1 : 2;
  if (tile == block) {
    if (threadIdx.x == 0) await_count((const int*)table[9], num_shrinking);
    __syncthreads();
  }
  for (int i = threadIdx.x; i < MATS * RANK * ROWS; i += THREADS) {
    constexpr int STRIDE = MODULES * (RANK + 4);
    const int n = i % ROWS, k = i / ROWS % RANK, m = GATED ? i / (ROWS * RANK) : module;
    const int4 slot = slot_of[m * 8 + n];
    float sum = 0.f;
    if (k < slot.y) {
      const float* from = (const float*)table[10] + (size_t)place_of[n] * STRIDE + m * (RANK + 4) + k;
#pragma unroll
      for (int s = 0; s < SPANS; s++) sum += __ldcg(from + (size_t)s * num_tiles * 8 * STRIDE);
      sum *= __int_as_float(slot.z);
    }
    scaled[i] = sum;
  }
#endif
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
#if ADAPTED
      y += adds(module, n, tile * 16 + r - (module == 0 ? 0 : module == 1 ? N0 : N0 + N1), scaled);
      if (GATED) up += adds(1, n, tile * 16 + r, scaled + RANK * ROWS);
#endif
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
#if ADAPTED
int* finished = (int*)table[9];
if (threadIdx.x == 0 && atomicAdd(finished + 1, 1) == blocks - 1) finished[0] = finished[1] = 0;  // all have seen it
#endif

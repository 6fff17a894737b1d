// y = x W' for more rows, TOKENS at a time. A warpgroup has 128 outputs (64 of gate and 64 of up, if gated): weights
// are widened in registers as the left operand of wgmma, and rows of x, laid out by `place`, are its right operand in
// shared memory. The inner dimension goes by pieces of 128: x by one bulk copy a piece, STAGES - 1 of them on their way.
// Weights come PART pieces at a time by each lane's own copies, one part ahead: small, so that three blocks fit on a
// multiprocessor, since one alone waits for its own instructions. The inner dimension may be in PARTS, which are summed
// by whoever reads `out`, (splits, rows, width) floats. Where rows have adapters, a block has more warps for what these
// add (see adapt.cu), which is parted among the parts.
constexpr int OCT = 16 / BITS, BLOCK = 32 * OCT, SUB = 128 / BLOCK, THREADS = 128 * GROUPS;
constexpr int PART = 8 / BITS, SCALE_PART = 2 * PART, SCALE_BYTES = SCALE_PART * 256 / GROUP;
constexpr int WIDTH = GATED ? N0 : N0 + N1 + N2, PIECES = K / 128;
constexpr int XBYTES = TOKENS * 256, WBYTES = THREADS * 128, SBYTES = GROUPS * 4 * 64 * SCALE_BYTES;
constexpr size_t ROW = (size_t)K * BITS / 8, SCALES = (size_t)K / GROUP * 2;
const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
const int block = blockIdx.x, part_of_k = blockIdx.y, num_parts = gridDim.y;
const int token_tiles = (rows + TOKENS - 1) / TOKENS;
const int first_token = (block % token_tiles) * TOKENS;
const int first_row = ((block / token_tiles) * GROUPS + (warp >> 2)) * (GATED ? 64 : 128) + (warp & 3) * 16;
const int per = (PIECES / SCALE_PART + num_parts - 1) / num_parts * SCALE_PART;
const int begin = part_of_k * per, end = min(PIECES, begin + per);
extern __shared__ char unaligned[];
const u32 base = ((u32)__cvta_generic_to_shared(unaligned) + 1023) & ~1023u;
const char* shared = unaligned + (base - (u32)__cvta_generic_to_shared(unaligned));
__shared__ __align__(8) u64 arrived[STAGES];
const u32 barriers = (u32)__cvta_generic_to_shared(arrived);
if (threadIdx.x == 0) make_barriers(barriers, STAGES);
#if ADAPTED
if (threadIdx.x == 0)
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"((u32)__cvta_generic_to_shared(&handed_over)), "n"(HELPERS));
#endif
__syncthreads();
#if ADAPTED
float* sums = (float*)(unaligned + (shared - unaligned) + STAGES * XBYTES + 2 * (WBYTES + SBYTES));
// Asked of one lane, so that it is known to be the same for a warp: else wgmma's descriptors are not kept in uniform
// registers, and are moved there before each of them.
if (__shfl_sync(~0u, threadIdx.x / 32, 0) >= THREADS / 32) {
  const int blocks = gridDim.x * num_parts;
  if constexpr (IS_CROWDED) asm volatile("setmaxnreg.dec.sync.aligned.u32 96;");
  const int column = block / token_tiles * (GATED ? 64 : 128), module = GATED || column < N0 ? 0 : column < N0 + N1 ? 1 : 2;
  follow();
  serve(part_of_k * gridDim.x + block, blocks, part_of_k, num_parts, sums, (u32*)(sums + TOKENS * 128), module,
        column - (module == 0 ? 0 : module == 1 ? N0 : N0 + N1));
  hand_over(blocks);
  return;
}
if constexpr (IS_CROWDED) asm volatile("setmaxnreg.inc.sync.aligned.u32 160;");
#endif
auto meet = [] {
#if ADAPTED
  asm volatile("bar.sync 1, 128;" ::: "memory");
#else
  __syncthreads();
#endif
};

// A matrix's row for one of a warpgroup's 128 outputs, the m-th 64 of them.
auto find = [&](int m, int row_of_tile, int& which) -> int {
  int row = row_of_tile + (GATED ? 0 : 64 * m);
  which = GATED ? m : 0;
  if (row >= WIDTH) row = row_of_tile & 63;
  if (!GATED && N1 > 0) {
    if (row >= N0 + N1) { which = 2; row -= N0 + N1; }
    else if (row >= N0) { which = 1; row -= N0; }
  }
  return row;
};
const char *pw[2], *pscale[2];
#pragma unroll
for (int m = 0; m < 2; m++) {
  int which, row = find(m, first_row + g, which);
  pw[m] = (const char*)(which == 0 ? w0 : which == 1 ? w1 : w2) + (size_t)row * ROW + t * 16;
  row = find(m, first_row + (lane >> 1), which);
  const char* s = (const char*)(which == 0 ? s0 : which == 1 ? s1 : s2);
  const char* b = (const char*)(which == 0 ? b0 : which == 1 ? b1 : b2);
  pscale[m] = (lane & 1 ? b : s) + (size_t)row * SCALES;
}
const char* rows_from = (const char*)x + (size_t)(first_token / TOKENS) * PIECES * XBYTES;
auto fetch_rows = [&](int piece) {
  const int slot = (piece - begin) % STAGES;
  arm(barriers + slot * 8, XBYTES);
  copy_bulk(base + slot * XBYTES, rows_from + (size_t)piece * XBYTES, XBYTES, barriers + slot * 8);
};
auto weights_at = [&](int piece) -> int { return STAGES * XBYTES + ((piece - begin) / PART & 1) * WBYTES; };
auto scales_at = [&](int piece) -> int {
  return STAGES * XBYTES + 2 * WBYTES + ((piece - begin) / SCALE_PART & 1) * SBYTES;
};
auto fetch_weights = [&](int piece) {
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        copy_async<16>(base + weights_at(piece) + (((m * 2 + r) * 2 + i) * THREADS + threadIdx.x) * 16,
                       pw[m] + r * 8 * ROW + (size_t)piece * (16 * BITS) + i * 64);
  if ((piece - begin) % SCALE_PART == 0) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int i = 0; i < SCALE_BYTES; i += 16)
        copy_async<(SCALE_BYTES < 16 ? SCALE_BYTES : 16)>(
            base + scales_at(piece) + (warp * 64 + m * 32 + lane) * SCALE_BYTES + i,
            pscale[m] + (size_t)piece * 256 / GROUP + i);
  }
  commit_copies();
};
float acc[2][TOKENS / 2];
#pragma unroll
for (int i = 0; i < TOKENS / 2; i++) acc[0][i] = acc[1][i] = 0.f;
if (begin < end) fetch_weights(begin);
follow();
if (threadIdx.x == 0)
  for (int i = begin; i < min(begin + STAGES - 1, end); i++) fetch_rows(i);
#pragma unroll 1
for (int piece = begin; piece < end; piece++) {
  const int slot = (piece - begin) % STAGES, part = (piece - begin) % PART;
  if (part == 0) await_copies<0>();
  await_bulk(barriers + slot * 8, (piece - begin) / STAGES & 1);
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  meet();
  if (threadIdx.x == 0 && piece + STAGES - 1 < end) fetch_rows(piece + STAGES - 1);
  if (part == 0 && piece + PART < end) fetch_weights(piece + PART);
  const u64 described = (u64)(((base + slot * XBYTES) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
  const char* weights = shared + weights_at(piece);
  constexpr int WORDS = GROUP == 32 ? 2 : 1;  // of scales that a piece needs, of which it has 4, 2 or 1
  u32 sw[2][2][WORDS], bw[2][2][WORDS];
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const char* p = shared + scales_at(piece) + (warp * 64 + m * 32 + (g + 8 * r) * 2) * SCALE_BYTES;
      const int of_scales = (piece - begin) % SCALE_PART, word_at = GROUP == 128 ? of_scales / 2 : of_scales * WORDS;
#pragma unroll
      for (int i = 0; i < WORDS; i++) {
        sw[m][r][i] = ((const u32*)p)[word_at + i];
        bw[m][r][i] = ((const u32*)(p + SCALE_BYTES))[word_at + i];
      }
    }
  auto pick = [&](const u32* v, int i) -> u32 {
    if constexpr (GROUP == 128) return both(v[0], (piece - begin) & 1 ? 0x3232u : 0x1010u);
    else if constexpr (GROUP == 64) return both(v[0], (SUB == 2 ? i : t >> 1) ? 0x3232u : 0x1010u);
    else if constexpr (SUB == 2) return both(v[i * (WORDS - 1)], t >> 1 ? 0x3232u : 0x1010u);
    else return both(t & 2 ? v[WORDS - 1] : v[0], t & 1 ? 0x3232u : 0x1010u);
  };
#pragma unroll
  for (int i = 0; i < SUB; i++) {
    uint4 w[2][2];
    u32 s[2][2], b[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        w[m][r] = *(const uint4*)(weights + (((m * 2 + r) * 2 + part * SUB + i) * THREADS + threadIdx.x) * 16);
        s[m][r] = pick(sw[m][r], i), b[m][r] = pick(bw[m][r], i);
      }
#pragma unroll
    for (int o = 0; o < OCT; o++) {
      u32 a[2][2][4];
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int r = 0; r < 2; r++)
          widen<BITS>(word(w[m][r], o * BITS / 4), word(w[m][r], o * BITS / 4 + 1), s[m][r], b[m][r], a[m][r]);
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int step = (i * OCT + o) * 2 + h;
        const u64 tile = described + (u64)((step >> 2) * (TOKENS * 8) + (step & 3) * 2);
#pragma unroll
        for (int m = 0; m < 2; m++)
          multiply(acc[m], a[m][0][2 * h], a[m][1][2 * h], a[m][0][2 * h + 1], a[m][1][2 * h + 1], tile);
      }
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    }
  }
}
asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#if ADAPTED
take_over(acc, sums);
#endif
#pragma unroll
for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
  for (int j = 0; j < 2; j++) {
    const int token = first_token + n * 8 + 2 * t + j;
    if (token < rows) {
#pragma unroll
      for (int r = 0; r < 2; r++) {
        if constexpr (GATED) {
          const int column = first_row + r * 8 + g;
          float y = acc[0][n * 4 + r * 2 + j], up = acc[1][n * 4 + r * 2 + j];
          if (column < WIDTH) {
            if constexpr (PARTS) {
              float* line = (float*)out + ((size_t)part_of_k * rows + token) * 2 * WIDTH;
              line[column] = y, line[WIDTH + column] = up;
            } else {
              if constexpr (ADDED) {
                const unsigned short* line = (const unsigned short*)added + (ADDED == 2 ? 0 : (size_t)token * 2 * WIDTH);
                y += wide(line[column]), up += wide(line[WIDTH + column]);
              }
              ((unsigned short*)out)[place<ORDER, TOKENS>(token, column, WIDTH)] = narrow(y / (1.f + __expf(-y)) * up);
            }
          }
        } else {
#pragma unroll
          for (int m = 0; m < 2; m++) {
            const int column = first_row + m * 64 + r * 8 + g;
            const size_t at = (size_t)token * WIDTH + column;
            float y = acc[m][n * 4 + r * 2 + j];
            if (column < WIDTH) {
              if constexpr (PARTS) {
                ((float*)out)[(size_t)part_of_k * rows * WIDTH + at] = y;
              } else {
                if constexpr (ADDED) y += wide(((const unsigned short*)added)[ADDED == 2 ? column : at]);
                if constexpr (FLOAT_OUT) ((float*)out)[at] = y;
                else ((unsigned short*)out)[at] = narrow(y);
              }
            }
          }
        }
      }
    }
  }

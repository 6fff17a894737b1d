// y = x W' for more rows, TOKENS at a time. A warpgroup has 128 outputs (64 of gate and 64 of up, if gated): weights
// are widened in registers as the left operand of wgmma, and rows of x, laid out by `place`, are its right operand in
// shared memory. The inner dimension goes by pieces of 128: x by one bulk copy a piece, STAGES - 1 of them on their way.
// Weights come PART pieces at a time, 256 bytes of a row at once (64 would leave the memory at a third of its speed), by
// each lane's own copies, one part ahead. The inner dimension is parted over blockIdx.y; the results are summed by
// whoever reads `out`, (splits, rows, width) floats.
constexpr int OCT = 16 / BITS, BLOCK = 32 * OCT, SUB = 128 / BLOCK, THREADS = 128 * GROUPS;
constexpr int PART = 16 / BITS, SCALE_BYTES = PART * 256 / GROUP;
constexpr int WIDTH = GATED ? N0 : N0 + N1 + N2, PIECES = K / 128;
constexpr int XBYTES = TOKENS * 256, WBYTES = THREADS * 256, SBYTES = GROUPS * 4 * 64 * SCALE_BYTES;
constexpr size_t ROW = (size_t)K * BITS / 8, SCALES = (size_t)K / GROUP * 2;
const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
const int rows = like_shape[0];
const int token_tiles = (rows + TOKENS - 1) / TOKENS;
const int first_token = (blockIdx.x % token_tiles) * TOKENS;
const int first_row = ((blockIdx.x / token_tiles) * GROUPS + (warp >> 2)) * (GATED ? 64 : 128) + (warp & 3) * 16;
const int per = (PIECES / PART + gridDim.y - 1) / gridDim.y * PART;
const int begin = blockIdx.y * per, end = min(PIECES, begin + per);
extern __shared__ char unaligned[];
const u32 base = ((u32)__cvta_generic_to_shared(unaligned) + 1023) & ~1023u;
const char* shared = unaligned + (base - (u32)__cvta_generic_to_shared(unaligned));
__shared__ __align__(8) u64 arrived[STAGES];
const u32 barriers = (u32)__cvta_generic_to_shared(arrived);
if (threadIdx.x == 0) {
#pragma unroll
  for (int i = 0; i < STAGES; i++) asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barriers + i * 8));
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__syncthreads();

const char *pw[2], *pscale[2];
#pragma unroll
for (int m = 0; m < 2; m++) {
  int which = GATED ? m : 0, row = GATED ? first_row : first_row + 64 * m;
  if (row >= WIDTH) row = (warp & 3) * 16;
  if (!GATED && N1 > 0) {
    if (row >= N0 + N1) { which = 2; row -= N0 + N1; }
    else if (row >= N0) { which = 1; row -= N0; }
  }
  pw[m] = (const char*)(which == 0 ? w0 : which == 1 ? w1 : w2) + (size_t)(row + g) * ROW + t * 16;
  const char* s = (const char*)(which == 0 ? s0 : which == 1 ? s1 : s2);
  const char* b = (const char*)(which == 0 ? b0 : which == 1 ? b1 : b2);
  pscale[m] = (lane & 1 ? b : s) + (size_t)(row + (lane >> 1)) * SCALES;
}
const char* rows_from = (const char*)x + (size_t)(first_token / TOKENS) * PIECES * XBYTES;
auto fetch_rows = [&](int piece) {
  const int slot = (piece - begin) % STAGES;
  const u32 barrier = barriers + slot * 8;
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "n"(XBYTES));
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   base + slot * XBYTES),
               "l"(rows_from + (size_t)piece * XBYTES), "n"(XBYTES), "r"(barrier)
               : "memory");
};
auto weights_at = [&](int piece) -> int { return STAGES * XBYTES + ((piece - begin) / PART & 1) * (WBYTES + SBYTES); };
auto fetch_weights = [&](int piece) {
  const u32 to = base + weights_at(piece);
#pragma unroll
  for (int m = 0; m < 2; m++) {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        copy_async<16>(to + (((m * 2 + r) * 4 + i) * THREADS + threadIdx.x) * 16,
                       pw[m] + r * 8 * ROW + (size_t)piece * (16 * BITS) + i * 64);
#pragma unroll
    for (int i = 0; i < SCALE_BYTES; i += 16)
      copy_async<(SCALE_BYTES < 16 ? SCALE_BYTES : 16)>(to + WBYTES + (warp * 64 + m * 32 + lane) * SCALE_BYTES + i,
                                                        pscale[m] + (size_t)piece * 256 / GROUP + i);
  }
  commit_copies();
};
float acc[2][TOKENS / 2];
#pragma unroll
for (int i = 0; i < TOKENS / 2; i++) acc[0][i] = acc[1][i] = 0.f;
if (begin < end) fetch_weights(begin);
if (threadIdx.x == 0)
  for (int i = begin; i < min(begin + STAGES - 1, end); i++) fetch_rows(i);
#pragma unroll 1
for (int piece = begin; piece < end; piece++) {
  const int slot = (piece - begin) % STAGES, part = piece % PART;
  if (part == 0) await_copies<0>();
  u32 done;
  do {
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(done) : "r"(barriers + slot * 8), "r"((piece - begin) / STAGES & 1) : "memory");
  } while (!done);
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  __syncthreads();
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
      const char* p = weights + WBYTES + (warp * 64 + m * 32 + (g + 8 * r) * 2) * SCALE_BYTES;
      const int word_at = GROUP == 128 ? part / 2 : part * WORDS;
#pragma unroll
      for (int i = 0; i < WORDS; i++) {
        sw[m][r][i] = ((const u32*)p)[word_at + i];
        bw[m][r][i] = ((const u32*)(p + SCALE_BYTES))[word_at + i];
      }
    }
  auto pick = [&](const u32* v, int i) -> u32 {
    if constexpr (GROUP == 128) return both(v[0], part & 1 ? 0x3232u : 0x1010u);
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
        w[m][r] = *(const uint4*)(weights + (((m * 2 + r) * 4 + part * SUB + i) * THREADS + threadIdx.x) * 16);
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
              float* line = (float*)out + ((size_t)blockIdx.y * rows + token) * 2 * WIDTH;
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
                ((float*)out)[(size_t)blockIdx.y * rows * WIDTH + at] = y;
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

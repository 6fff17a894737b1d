// What adapters add to a block of the tiled product: scale * low B. Some more warps of each block see to it, while the
// others widen weights. First they take shares of what is to be shrunk: a block that has certainly begun has one of its
// own, all others are given out, so nobody waits for a block that has not begun. When everybody's are done, they bring the
// lows. Then a warp takes a tile of rows at a time, 16 rank rows by the block's 128 columns (64 of gate's and 64 of up's, if
// gated), four columns a lane, and the next ones are on their way meanwhile. These products are small, and tensor cores are
// busy with the others'. A row has one adapter, so a tile's sums are whole; they are handed over in shared memory.
constexpr int MATS = GATED ? 2 : 1, CHUNKS = RANK / 16, LOW_WORDS = RANK / 2;
constexpr int HELPERS = SHRINK_WARPS * 32;  // their lanes
__shared__ int place_of[TOKENS], given;  // of a row, among those of the tiles
__shared__ __align__(8) u64 handed_over;
const int num_shares = num_tiles * MODULES * SPANS;
auto sum_at = [](int token, int column) -> int {  // such that no two lanes meet in a bank
  return token * 128 + (column ^ (token >> 1 & 3) << 3);
};
auto describe = [&](int thread) {
  if (thread < TOKENS) place_of[thread] = -1;
  meet_shrinkers();
  if (thread < num_tiles) {
    const int* line = tiles + thread * 10;
    const int adapter = line[0], count = line[1];
    int rows_of[8];
#pragma unroll
    for (int i = 0; i < 8; i++) rows_of[i] = line[2 + i];
#pragma unroll
    for (int m = 0; m < MODULES; m++) {
      const bool is_there = adapter >= 0 && count > 0 && (present >> m & 1);
      const int4 slot = is_there ? ((const int4*)table[m * 3 + 2])[adapter] : make_int4(0, 0, 0, 0);
      slot_of[m * MOST_TILES + thread] = slot;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < count) place_of[rows_of[i]] = thread * 8 + i;
  }
  meet_shrinkers();
};
auto take_shares = [&](int thread, int block, int blocks, float* scratch) {
  int* counts = (int*)table[9];  // shares that are done, blocks that are, shares given out
  const int certain = min(num_certain, blocks);
  const bool all_are_certain = certain >= num_shares;
  auto next = [&]() -> int { return all_are_certain ? num_shares : certain + atomicAdd(counts + 2, 1); };
  if (thread == 0) given = block < certain ? block : next();
  meet_shrinkers();
  for (int share = given; share < num_shares; share = given) {
    int then = 0;
    if (thread == 0) then = next();
    shrink(share, scratch);
    meet_shrinkers();
    if (thread == 0) {
      __threadfence();
      atomicAdd(counts, 1);
      given = then;
    }
    meet_shrinkers();
  }
};
int blocks_before = -1;  // that had everybody's shares, as the thread knows that asked
auto bring_lows = [&](int thread, u32* lows, int module) {
  constexpr int STRIDE = MODULES * (RANK + 4), QUADS = MATS * TOKENS * RANK / 4;
  int* counts = (int*)table[9];
  if (thread == 0) await_count(counts, num_shares);
  meet_shrinkers();
  if (thread == 0) blocks_before = atomicAdd(counts + 1, 1);  // nobody waits for the answer until the end
  const float* all = (const float*)table[10];
#pragma unroll 4
  for (int i = thread; i < QUADS; i += HELPERS) {
    const int k = i % (RANK / 4) * 4, token = i / (RANK / 4) % TOKENS, m = i / (RANK / 4) / TOKENS, place = place_of[token];
    const int which = GATED ? m : module;
    const int4 slot = place < 0 ? make_int4(0, 0, 0, 0) : slot_of[which * MOST_TILES + place / 8];
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
    if (k < slot.y) {
      const float* from = all + (size_t)place * STRIDE + which * (RANK + 4) + k;
#pragma unroll
      for (int s = 0; s < SPANS; s++) {
        const float4 p = __ldcg((const float4*)(from + (size_t)s * num_tiles * 8 * STRIDE));
        sum.x += p.x, sum.y += p.y, sum.z += p.z, sum.w += p.w;
      }
    }
    const float scale = __int_as_float(slot.z);
    *(uint2*)(lows + (m * TOKENS + token) * LOW_WORDS + k / 2) = make_uint2(pack(sum.x * scale, sum.y * scale), pack(sum.z * scale, sum.w * scale));
  }
};
auto serve = [&](int block, int blocks, int part, int parts, float* sums, u32* lows, int module, int column) {
  const int thread = threadIdx.x - 128, lane = thread & 31, m = GATED ? lane / 16 : 0, which = GATED ? m : module;
  const int width = which == 0 ? N0 : which == 1 ? N1 : N2, each = (num_tiles + parts - 1) / parts;
  const int last = min((part + 1) * each, num_tiles) * CHUNKS;
  const bf16* right = (const bf16*)table[which * 3 + 1] + column + (GATED ? lane % 16 : lane) * 4;
  struct Chunk {
    uint2 right[16];
    int rows, count;
  };
  auto fetch = [&](Chunk& chunk, int index) {
    if (index >= last) return;
    const int tile = index / CHUNKS, first = index % CHUNKS * 16;
    const int4 slot = slot_of[which * MOST_TILES + tile];
    chunk.count = tiles[tile * 10 + 1], chunk.rows = tiles[tile * 10 + 2 + lane % 8];
#pragma unroll
    for (int r = 0; r < 16; r++)
      chunk.right[r] = first + r < slot.y ? __ldg((const uint2*)(right + (size_t)(slot.x + first + r) * width)) : make_uint2(0, 0);
  };
  auto announce = [&](int index) {  // to the L2 cache, where there are no registers to spare
    if (index >= last) return;
    const int4 slot = slot_of[which * MOST_TILES + index / CHUNKS];
    const int rank = index % CHUNKS * 16 + lane % 16;
    const bf16* line = (const bf16*)table[which * 3 + 1] + column + (size_t)(slot.x + rank) * width;
    if (GATED || lane < 16) {
      if (rank < slot.y) asm volatile("prefetch.global.L2 [%0];" ::"l"(line));
      if (!GATED && rank < slot.y) asm volatile("prefetch.global.L2 [%0];" ::"l"(line + 64));
    }
  };
  auto add = [&](const Chunk& chunk, int index) {
#pragma unroll 1
    for (int n = 0; n < chunk.count; n++) {
      const int row = __shfl_sync(~0u, chunk.rows, n);
      const uint4* low_words = (const uint4*)(lows + (m * TOKENS + row) * LOW_WORDS + index % CHUNKS * 8);
      const uint4 some[2] = {low_words[0], low_words[1]};
      float4* at = (float4*)(sums + sum_at(row, lane * 4));
      float4 y = *at;
#pragma unroll
      for (int r = 0; r < 16; r++) {
        const u32 two = word(some[r / 8], r / 2 % 4);
        const float by = r % 2 ? high(two) : low(two);
        y.x += by * low(chunk.right[r].x), y.y += by * high(chunk.right[r].x);
        y.z += by * low(chunk.right[r].y), y.w += by * high(chunk.right[r].y);
      }
      *at = y;
    }
  };
#pragma unroll
  for (int i = 0; i < TOKENS * 32 / HELPERS; i++) ((float4*)sums)[i * HELPERS + thread] = make_float4(0.f, 0.f, 0.f, 0.f);
  describe(thread);
  take_shares(thread, block, blocks, (float*)lows);
  // A warp's chunks: those of its tiles, one tile after another.
  auto chunk_of = [&](int turn) -> int { return (part * each + thread / 32 + turn / CHUNKS * SHRINK_WARPS) * CHUNKS + turn % CHUNKS; };
  if constexpr (IS_CROWDED) {
    announce(chunk_of(0));
    announce(chunk_of(1));
    bring_lows(thread, lows, module);
    meet_shrinkers();
#pragma unroll 1
    for (int turn = 0; chunk_of(turn) < last; turn++) {
      Chunk one;
      announce(chunk_of(turn + 2));
      fetch(one, chunk_of(turn));
      add(one, chunk_of(turn));
    }
    return;
  }
  Chunk one, two;
  fetch(one, chunk_of(0));
  bring_lows(thread, lows, module);
  meet_shrinkers();
#pragma unroll 1
  for (int turn = 0; chunk_of(turn) < last; turn += 2) {
    fetch(two, chunk_of(turn + 1));
    add(one, chunk_of(turn));
    if (chunk_of(turn + 1) >= last) break;
    fetch(one, chunk_of(turn + 2));
    add(two, chunk_of(turn + 1));
  }
};
auto hand_over = [&](int blocks) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"((u32)__cvta_generic_to_shared(&handed_over)) : "memory");
  int* counts = (int*)table[9];
  if (blocks_before == blocks - 1) counts[0] = counts[1] = counts[2] = 0;  // nobody reads them any more
};
auto take_over = [&](float (&acc)[2][TOKENS / 2], const float* sums) {
  const int lane = threadIdx.x & 31, first = threadIdx.x / 32 * 16 + lane / 4, t = lane & 3;
  await_bulk((u32)__cvta_generic_to_shared(&handed_over), 0);
#pragma unroll
  for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
    for (int i = 0; i < 8; i++)  // as the product's sums lie: matrix, eight rows of it, one of two tokens
      acc[i / 4][n * 4 + i % 4] += sums[sum_at(n * 8 + 2 * t + i % 2, i / 4 * 64 + i / 2 % 2 * 8 + first)];
};

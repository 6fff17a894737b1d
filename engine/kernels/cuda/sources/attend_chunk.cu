// Attention of prompts' rows, which are in the cache by now. A warp has 16 rows of one head; the four warps of a block
// share their keys: ABREAST heads of a group, and 4 / ABREAST runs of rows. `pieces`: (first row, end, sequence).
constexpr size_t STRIDE = (size_t)KV * D * 2;
constexpr int BYTES = Tile<D>::BYTES;
const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
const int head = blockIdx.y * ABREAST + warp % ABREAST, key_head = head / (HEADS / KV);
const int block_first = pieces[blockIdx.x * 3], end = pieces[blockIdx.x * 3 + 1];
const int first = block_first + warp / ABREAST * 16;
const int* table = tables + (size_t)pieces[blockIdx.x * 3 + 2] * table_width;
extern __shared__ __align__(16) char shared[];
const u32 ring_at = (u32)__cvta_generic_to_shared(shared);
const int row0 = first + g, row1 = first + g + 8;
const int start = WINDOW ? max(0, positions[block_first] - WINDOW + 1) / 16 : 0;
const int tiles = positions[end - 1] / 16 + 1;
const int last = first < end ? positions[min(first + 15, end - 1)] : -1;
__shared__ __align__(8) u64 arrived[STAGES];
const u32 barriers = (u32)__cvta_generic_to_shared(arrived);
if (threadIdx.x == 0) make_barriers(barriers, STAGES);
__syncthreads();
auto fetch = [&](int tile) {
  const size_t slot = (size_t)table[tile * 16 / SIZE] * SIZE + tile * 16 % SIZE;
  const size_t place = (slot * KV + key_head) * D * 2;
  const int at = (tile - start) % STAGES;
  fetch_tile<D, false>(ring_at + at * BYTES, barriers + at * 8, (const char*)keys + place, (const char*)values + place, STRIDE,
                       lane);
};
if (warp == 0)
  for (int n = 0; n < STAGES - 1; n++)
    if (start + n < tiles) fetch(start + n);
u32 qa[D / 32][4], qb[D / 32][4];
#pragma unroll
for (int c = 0; c < D / 32; c++) {
  const uint4 none = make_uint4(0, 0, 0, 0);
  const unsigned short* from = (const unsigned short*)q + head * D + 8 * Tile<D>::chunk(c, t);
  const uint4 a = row0 < end ? load16(from + (size_t)row0 * HEADS * D) : none;
  const uint4 b = row1 < end ? load16(from + (size_t)row1 * HEADS * D) : none;
  qa[c][0] = a.x, qa[c][1] = a.y, qa[c][2] = a.z, qa[c][3] = a.w;
  qb[c][0] = b.x, qb[c][1] = b.y, qb[c][2] = b.z, qb[c][3] = b.w;
}
const int to0 = row0 < end ? positions[row0] : -1, to1 = row1 < end ? positions[row1] : -1;
const int from0 = WINDOW ? to0 - WINDOW + 1 : 0, from1 = WINDOW ? to1 - WINDOW + 1 : 0;
Flash<D> f;
f.clear();
for (int tile = start; tile < tiles; tile++) {
  const int at = (tile - start) % STAGES;
  await_bulk(barriers + at * 8, (tile - start) / STAGES & 1);
  __syncthreads();
  if (warp == tile % WARPS && tile + STAGES - 1 < tiles) fetch(tile + STAGES - 1);
  if (tile * 16 <= last)
    attend<D>(f, qa, qb, shared + at * BYTES, tile * 16, from0, to0, from1, to1, lane);
}
#pragma unroll
for (int r = 0; r < 2; r++) {
  float sum = f.l[r];
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  const int row = r ? row1 : row0;
  const float factor = 1.f / sum;
  if (row < end) {
#pragma unroll
    for (int i = 0; i < D / 8; i++)
#pragma unroll
      for (int e = 0; e < 2; e++)
        ((unsigned short*)out)[place<ORDER, TOKENS>(row, head * D + dimension<D>(i, e, t), HEADS * D)] = narrow(f.o[i][2 * r + e] * factor);
  }
}

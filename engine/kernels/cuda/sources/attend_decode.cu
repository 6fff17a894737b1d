// Attention of decode rows, one block for each row, head of keys and part of the context. The block that owns the
// row's own position norms and turns its key and writes both to the cache, in place, before it reads them. The last
// block of a row and head to finish merges the parts, in their order.
constexpr int G = HEADS / KV;
constexpr size_t STRIDE = (size_t)KV * D * 2;
constexpr int BYTES = Tile<D>::BYTES, PITCH = Tile<D>::PITCH;
const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
const int head = blockIdx.x, row = blockIdx.y, split = blockIdx.z, splits = gridDim.z;  // a row's heads side by side
const int position = positions[row];
const int* table = tables + (size_t)row * table_width;
const int tiles = position / 16 + 1, first = WINDOW ? max(0, position - WINDOW + 1) / 16 : 0;
const int per = (tiles - first + splits - 1) / splits;
const int begin = first + split * per, end = min(tiles, begin + per);
const bool owns = begin < end && end == tiles;
const unsigned short* line = (const unsigned short*)qkv + (size_t)row * (HEADS + 2 * KV) * D;
extern __shared__ __align__(16) char shared[];
char* ring = shared + warp * STAGES * BYTES;
const u32 ring_at = (u32)__cvta_generic_to_shared(ring);
__shared__ __align__(8) u64 arrived[WARPS * STAGES];
const u32 barriers = (u32)__cvta_generic_to_shared(arrived) + warp * STAGES * 8;
if (lane == 0) make_barriers(barriers, STAGES);
__syncwarp();
__shared__ __align__(16) unsigned short queries[G * D];
__shared__ float tops[WARPS][8], sums[WARPS][8];
__shared__ int ticket;

const int mine = (end - begin - warp + WARPS - 1) / WARPS;  // tiles of this warp
int known = -1, block = 0;
auto fetch = [&](int n) {
  if (n / 32 != known) {
    known = n / 32;
    const int tile = begin + warp + (known * 32 + lane) * WARPS;
    block = tile < end ? table[tile * 16 / SIZE] : 0;
  }
  const int tile = begin + warp + n * WARPS;
  const size_t slot = (size_t)__shfl_sync(~0u, block, n % 32) * SIZE + tile * 16 % SIZE;
  const size_t place = (slot * KV + head) * D * 2;
  fetch_tile<D, true>(ring_at + n % STAGES * BYTES, barriers + n % STAGES * 8, (const char*)keys + place,
                      (const char*)values + place, STRIDE, lane);
};
const float2* turned = (const float2*)turns + (size_t)row * (D / 2);
Vector<D, NORMED> query, key;
if (warp < G) query.load(line + (head * G + warp) * D, turned, lane);
if (owns && warp == WARPS - 1) key.load(line + (HEADS + head) * D, turned, lane);
int late = -1;  // the tile that is not whole until this block has written to it
#pragma unroll
for (int n = 0; n < STAGES - 1; n++) {
  if (n < mine) {
    if (begin + warp + n * WARPS == tiles - 1) late = n;
    else fetch(n);
  }
}
for (int h = warp; h < G; h += WARPS) {
  if (h >= WARPS) query.load(line + (head * G + h) * D, turned, lane);
  query.store(queries + h * D, (const unsigned short*)q_norm, EPS, SCALE, lane);
}
if (owns && warp == WARPS - 1) {
  const size_t slot = (size_t)table[position / SIZE] * SIZE + position % SIZE;
  key.store((unsigned short*)keys + (slot * KV + head) * D, (const unsigned short*)k_norm, EPS, 1.f, lane);
  if (lane < D / 8)
    ((uint4*)((unsigned short*)values + (slot * KV + head) * D))[lane] =
        ((const uint4*)(line + (HEADS + KV + head) * D))[lane];
  __threadfence();
  asm volatile("fence.proxy.async;" ::: "memory");
}
__syncthreads();
if (late >= 0) fetch(late);
u32 q[D / 32][4];
#pragma unroll
for (int c = 0; c < D / 32; c++) {
  const uint4 v = g < G ? *(const uint4*)(queries + g * D + 8 * Tile<D>::chunk(c, t)) : make_uint4(0, 0, 0, 0);
  q[c][0] = v.x, q[c][1] = v.y, q[c][2] = v.z, q[c][3] = v.w;
}
// Sums stand the other way round, (dimension, head), so that no row of the product is empty.
constexpr int HALVES_OF = D / 64;
float o[D / 16][4] = {}, top = -INF, sum = 0.f;
const int from = WINDOW ? position - WINDOW + 1 : 0;
for (int n = 0; n < mine; n++) {
  await_bulk(barriers + n % STAGES * 8, n / STAGES & 1);
  const char* tile = ring + (n % STAGES) * BYTES;
  const int first_key = (begin + warp + n * WARPS) * 16;
  float s[2][4] = {};
#pragma unroll
  for (int c = 0; c < D / 32; c++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      const uint4 k = *(const uint4*)(tile + (8 * j + g) * PITCH + Tile<D>::chunk(c, t) * 16);
      mma(s[j], q[c][0], 0, q[c][1], 0, k.x, k.y);
      mma(s[j], q[c][2], 0, q[c][3], 0, k.z, k.w);
    }
  if (first_key + 15 > position || first_key < from) {
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int at = first_key + 8 * j + 2 * t + e;
        if (at > position || at < from) s[j][e] = -INF;
      }
  }
  float next = fmaxf(fmaxf(top, fmaxf(s[0][0], s[0][1])), fmaxf(s[1][0], s[1][1]));
  next = fmaxf(next, __shfl_xor_sync(~0u, next, 1));
  next = fmaxf(next, __shfl_xor_sync(~0u, next, 2));
  const float safe = next == -INF ? 0.f : next, keep = power(top - safe);
  top = next;
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int e = 0; e < 2; e++) s[j][e] = power(s[j][e] - safe);
  sum = sum * keep + ((s[0][0] + s[0][1]) + (s[1][0] + s[1][1]));
  const u32 p0 = pack(s[0][0], s[0][1]), p1 = pack(s[1][0], s[1][1]);
  const float keep0 = __shfl_sync(~0u, keep, 8 * t), keep1 = __shfl_sync(~0u, keep, 8 * t + 4);
#pragma unroll
  for (int i = 0; i < D / 16; i++) o[i][0] *= keep0, o[i][1] *= keep1, o[i][2] *= keep0, o[i][3] *= keep1;
  auto row_pair = [&](int i, u32 a, u32 b, u32 c, u32 d) {
    mma(o[i], __byte_perm(a, b, 0x5410), __byte_perm(a, b, 0x7632), __byte_perm(c, d, 0x5410), __byte_perm(c, d, 0x7632),
        p0, p1);
  };
#pragma unroll
  for (int h = 0; h < HALVES_OF; h++) {
    uint4 v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = *(const uint4*)(tile + (16 + 2 * t + (i & 1) + (i >> 1) * 8) * PITCH + h * 128 + g * 16);
    row_pair(h * 4, v[0].x, v[1].x, v[2].x, v[3].x);
    row_pair(h * 4 + 1, v[0].y, v[1].y, v[2].y, v[3].y);
    row_pair(h * 4 + 2, v[0].z, v[1].z, v[2].z, v[3].z);
    row_pair(h * 4 + 3, v[0].w, v[1].w, v[2].w, v[3].w);
  }
  if constexpr (D % 64 != 0) {
    uint2 v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = *(const uint2*)(tile + (16 + 2 * t + (i & 1) + (i >> 1) * 8) * PITCH + HALVES_OF * 128 + g * 8);
    row_pair(HALVES_OF * 4, v[0].x, v[1].x, v[2].x, v[3].x);
    row_pair(HALVES_OF * 4 + 1, v[0].y, v[1].y, v[2].y, v[3].y);
  }
  __syncwarp();
  if (n + STAGES - 1 < mine) fetch(n + STAGES - 1);
}
sum += __shfl_xor_sync(~0u, sum, 1);
sum += __shfl_xor_sync(~0u, sum, 2);
__syncwarp();
if (g < G && t == 0) tops[warp][g] = top, sums[warp][g] = sum;
#pragma unroll
for (int i = 0; i < D / 16; i++)
#pragma unroll
  for (int e = 0; e < 4; e++) {
    const int h = 2 * t + (e & 1);  // lanes' dimensions: pairs of a half's 8, or of the rest's 4
    const int d = i < HALVES_OF * 4 ? (i >> 2) * 64 + 8 * g + (i & 3) * 2 + (e >> 1)
                                    : HALVES_OF * 64 + 4 * g + (i - HALVES_OF * 4) * 2 + (e >> 1);
    if (h < G) ((float*)ring)[h * D + d] = o[i][e];
  }
__syncthreads();
constexpr int PART = G * D + 2 * G;
float* part_of = part + (((size_t)row * KV + head) * splits + split) * PART;
auto write = [&](int index, float4 y, float l) {
  const float factor = 1.f / l;
  const float values4[4] = {y.x * factor, y.y * factor, y.z * factor, y.w * factor};
  if constexpr (ORDER == 0) {
    *(uint2*)((unsigned short*)out + (size_t)row * HEADS * D + head * G * D + index) =
        make_uint2(pack(values4[0], values4[1]), pack(values4[2], values4[3]));
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++)
      ((unsigned short*)out)[place<ORDER, TOKENS>(row, head * G * D + index + i, HEADS * D)] = narrow(values4[i]);
  }
};
for (int index = threadIdx.x * 4; index < G * D; index += WARPS * 128) {
  const int h = index / D;
  float best = -INF, l = 0.f;
  float4 y = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
  for (int w = 0; w < WARPS; w++) best = fmaxf(best, tops[w][h]);
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    if (tops[w][h] == -INF) continue;  // this warp had no keys, and its place holds what it held before
    const float factor = power(tops[w][h] - best);
    const float4 v = *(const float4*)((const float*)(shared + w * STAGES * BYTES) + index);
    y.x += v.x * factor, y.y += v.y * factor, y.z += v.z * factor, y.w += v.w * factor;
    l += sums[w][h] * factor;
  }
  if (splits == 1) {
    write(index, y, l);
  } else {
    __stcg((float4*)(part_of + index), y);
    if (index % D == 0) __stcg(part_of + G * D + h, best), __stcg(part_of + G * D + G + h, l);
  }
}
if (splits > 1) {
  __threadfence();
  __syncthreads();
  int* counter = (int*)tickets + row * KV + head;
  if (threadIdx.x == 0) ticket = atomicAdd(counter, 1);
  __syncthreads();
  if (ticket == splits - 1) {
    __threadfence();
    const float* parts = part + ((size_t)row * KV + head) * splits * PART;
    for (int index = threadIdx.x * 4; index < G * D; index += WARPS * 128) {
      const int h = index / D;
      float best = -INF, l = 0.f;
      float4 y = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 4
      for (int s = 0; s < splits; s++) {
        const float at = __ldcg(parts + s * PART + G * D + h), length = __ldcg(parts + s * PART + G * D + G + h);
        const float4 v = __ldcg((const float4*)(parts + s * PART + index));
        const float both_best = fmaxf(best, at), safe = both_best == -INF ? 0.f : both_best;
        const float mine_factor = power(best - safe), its = power(at - safe);
        best = both_best;
        y.x = y.x * mine_factor + v.x * its, y.y = y.y * mine_factor + v.y * its;
        y.z = y.z * mine_factor + v.z * its, y.w = y.w * mine_factor + v.w * its;
        l = l * mine_factor + length * its;
      }
      write(index, y, l);
    }
    if (threadIdx.x == 0) *counter = 0;
  }
}

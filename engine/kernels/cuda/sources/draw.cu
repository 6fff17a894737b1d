// One token a row, a block a row, as engine/sampling.py defines it, and without a sort of the vocabulary. Logits are
// looked at again for each question: first the largest; then, where top-k or top-p cut, the smallest that stays, byte
// by byte of its bits, by how many or how heavy the larger ones are; then the weight of all that stay, and where the
// drawn number falls. Weights are whole numbers (2^-40 of the largest), so that their sum has no order. The host reads
// tokens in pinned memory; the knobs come from there.
constexpr int THREADS = 1024, LINES = THREADS / 32;
const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
const float* line = logits + (size_t)blockIdx.x * size;
const float* knobs = (const float*)((const int*)(size_t)letter[0] + HEADER) + blockIdx.x * 5;
const float temperature = IS_GREEDY ? 0.f : knobs[0];
__shared__ float bests[LINES];
__shared__ int places[LINES];
__shared__ u64 totals[LINES], weight_bins[256];
__shared__ int count_bins[256];
__shared__ u32 known;
__shared__ u64 passed;

float best = -INF;
int where = 0x7fffffff;
for (int i = threadIdx.x * 4; i < size; i += THREADS * 4) {
  const float4 v = *(const float4*)(line + i);
  if (v.x > best) best = v.x, where = i;
  if (v.y > best) best = v.y, where = i + 1;
  if (v.z > best) best = v.z, where = i + 2;
  if (v.w > best) best = v.w, where = i + 3;
}
auto reduce = [&]() {
#pragma unroll
  for (int d = 16; d; d >>= 1) {
    const float other = __shfl_xor_sync(~0u, best, d);
    const int place = __shfl_xor_sync(~0u, where, d);
    if (other > best || (other == best && place < where)) best = other, where = place;
  }
};
reduce();
if (lane == 0) bests[warp] = best, places[warp] = where;
__syncthreads();
best = bests[lane], where = places[lane];
reduce();
auto answer = [&](int token) {
  out[blockIdx.x] = token;
  ((volatile int*)(size_t)reply[0])[blockIdx.x] = token;
  __threadfence_system();
};
if (temperature <= 0.f) {
  if (threadIdx.x == 0) answer(where);
  return;
}
const float warmth = fmaxf(temperature, 1e-6f);
auto scaled = [&](float logit) { return __fdiv_rn(logit - best, warmth); };  // 0 or less
auto weigh = [&](float s) -> u64 { return (u64)((double)expf(s) * 1099511627776.0 + 0.5); };
// The larger a scaled logit, the smaller its rank: the bits of a float that is not positive, without the sign.
auto rank_of = [&](float s) -> u32 { return __float_as_uint(s) & 0x7fffffffu; };
u32 last = rank_of(logf(knobs[3]));  // the greatest rank that stays: min_p's
if (knobs[3] <= 0.f) last = 0x7f800000u;

// The least rank such that those up to it are `wanted` in number, or in weight more than `wanted`.
auto cut = [&](bool by_weight, u64 wanted, u32 up_to) {
  u32 prefix = 0;
  u64 before = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int i = threadIdx.x; i < 256; i += THREADS) weight_bins[i] = 0, count_bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i - lane < size; i += THREADS) {
      const float s = i < size ? scaled(line[i]) : 0.f;
      const u32 rank = rank_of(s), bin = rank >> shift & 255;
      const bool is_inside = i < size && rank <= up_to && (shift == 24 || rank >> (shift + 8) == prefix >> (shift + 8));
      const u32 inside = __ballot_sync(~0u, is_inside);
      if (is_inside) {  // who has the same bin adds up first: most are in a few bins
        const u32 peers = __match_any_sync(inside, bin);
        const bool is_first = lane == __ffs(peers) - 1;
        if (by_weight) {
          const u64 w = weigh(s);
          const u32 lower = __reduce_add_sync(peers, (u32)w & 0x1fffffu), upper = __reduce_add_sync(peers, (u32)(w >> 21));
          if (is_first) atomicAdd(weight_bins + bin, ((u64)upper << 21) + lower);
        } else if (is_first) {
          atomicAdd(count_bins + bin, __popc(peers));
        }
      }
      __syncwarp();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      u64 sum = before;
      int bin = 0;
      for (; bin < 255; bin++) {
        const u64 here = by_weight ? weight_bins[bin] : (u64)count_bins[bin];
        if (sum + here >= wanted) break;
        sum += here;
      }
      known = prefix | (u32)bin << shift;
      passed = sum;
    }
    __syncthreads();
    prefix = known, before = passed;
    __syncthreads();
  }
  return prefix;
};
// Each warp has a run of tokens, in their order, so that a place can be found in the sum of all.
const int run = ((size + LINES - 1) / LINES + 31) / 32 * 32, from = warp * run, to = min(size, from + run);
auto weight_at = [&](int i) -> u64 {
  if (i >= to) return 0;
  const float s = scaled(line[i]);
  return rank_of(s) <= last ? weigh(s) : 0;
};
auto total = [&]() -> u64 {
  u64 sum = 0;
  for (int i = from + lane; i < to; i += 32) sum += weight_at(i);
#pragma unroll
  for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(~0u, sum, d);
  __syncthreads();
  if (lane == 0) totals[warp] = sum;
  __syncthreads();
  u64 all = 0;
  for (int w = 0; w < LINES; w++) all += totals[w];
  return all;
};
const int top_k = (int)knobs[1];
const float top_p = knobs[2];
if (IS_FILTERED) {
  const u32 by_min = last;
  u32 by_count = 0x7f800000u;
  if (top_k > 0 && top_k < size) by_count = cut(false, top_k, 0x7f800000u);
  last = by_count;
  if (top_p < 1.f) {
    const u64 kept = total();
    last = cut(true, max(1ull, (u64)ceil((double)top_p * (double)kept)), by_count);
  }
  last = min(last, by_min);
}
const u64 all = total();
const u64 target = (u64)((double)knobs[4] * (double)all);  // less than all
u64 before = 0;
int mine = 0;
while (mine < LINES - 1 && before + totals[mine] <= target) before += totals[mine], mine++;
if (warp == mine) {
  int token = -1;
  for (int i = from; i < to && token < 0; i += 32) {
    const u64 w = weight_at(i + lane);
    u64 sum = w;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
      const u64 other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    const u32 past = __ballot_sync(~0u, before + sum > target);
    if (past) token = i + __ffs(past) - 1;
    before += __shfl_sync(~0u, sum, 31);
  }
  if (lane == 0) answer(token < 0 ? where : token);
}

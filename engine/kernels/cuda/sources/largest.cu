// The first of the largest logits of a row; one block a row. The host reads it in pinned memory.
const float* line = logits + (size_t)blockIdx.x * logits_shape[1];
const int size = logits_shape[1];
float best = -INF;
int where = 0x7fffffff;
for (int i = threadIdx.x * 4; i < size; i += 4096) {
  const float4 v = *(const float4*)(line + i);
  if (v.x > best) best = v.x, where = i;
  if (v.y > best) best = v.y, where = i + 1;
  if (v.z > best) best = v.z, where = i + 2;
  if (v.w > best) best = v.w, where = i + 3;
}
__shared__ float bests[32];
__shared__ int places[32];
auto reduce = [&]() {
#pragma unroll
  for (int d = 16; d; d >>= 1) {
    const float other = __shfl_xor_sync(~0u, best, d);
    const int place = __shfl_xor_sync(~0u, where, d);
    if (other > best || (other == best && place < where)) best = other, where = place;
  }
};
reduce();
if ((threadIdx.x & 31) == 0) bests[threadIdx.x >> 5] = best, places[threadIdx.x >> 5] = where;
__syncthreads();
if (threadIdx.x < 32) {
  best = bests[threadIdx.x], where = places[threadIdx.x];
  reduce();
  if (threadIdx.x == 0) {
    out[blockIdx.x] = where;
    ((volatile int*)(size_t)letter[0])[blockIdx.x] = where;
    __threadfence_system();
  }
}

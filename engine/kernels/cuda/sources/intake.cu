// Words from pinned memory: a block takes 4096 of them, four a thread at a time.
const u32* from = (const u32*)where[0];
const size_t first = (size_t)blockIdx.x * 4096 + threadIdx.x * 4;
uint4 v[4];
#pragma unroll
for (int i = 0; i < 4; i++)
  if (first + i * 1024 + 3 < words) v[i] = __ldcs((const uint4*)(from + first + i * 1024));
#pragma unroll
for (int i = 0; i < 4; i++) {
  const size_t at = first + i * 1024;
  if (at + 3 < words) *(uint4*)(out + at) = v[i];
  else
    for (size_t k = at; k < words; k++) out[k] = from[k];
}

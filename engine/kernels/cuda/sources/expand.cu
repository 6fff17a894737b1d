// What adapters add to their rows, in a launch of its own: scale * low B of all modules side by side, on top of `added`, if
// there is any. A warp has one row and 128 columns, and its lanes hold the row's `lows`, which come from `shrink` in spans
// to be summed. A block has one tile of rows: the fewer these are, the more columns, and blocks that are left over have
// nothing to do.
constexpr int STRIDE = MODULES * (RANK + 4), WIDTH = N0 + N1 + N2;
constexpr int HELD = RANK < 32 ? RANK : 32;  // of a row's lows, a lane each, at a time
const int tile = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, num_tiles = gridDim.y;
const int count = tiles[tile * 10 + 1], abreast = count > 4 ? 8 : count > 2 ? 4 : count > 1 ? 2 : 1;
const int n = warp % abreast, column = (blockIdx.x * (8 / abreast) + warp / abreast) * 128 + lane * 4;
if (n >= count || column >= WIDTH) return;
const int adapter = tiles[tile * 10], row = tiles[tile * 10 + 2 + n];
const int m = column < N0 ? 0 : column < N0 + N1 ? 1 : 2;
const int width = m == 0 ? N0 : m == 1 ? N1 : N2;
const int4 slot = adapter < 0 || !(present >> m & 1) ? make_int4(0, 0, 0, 0) : ((const int4*)table[m * 3 + 2])[adapter];
const size_t at = (size_t)row * WIDTH + column;
float y[4] = {};
if constexpr (ADDED) {
  const uint2 v = *(const uint2*)(added + at);
  y[0] += low(v.x), y[1] += high(v.x), y[2] += low(v.y), y[3] += high(v.y);
}
const float* from = lows + ((size_t)tile * 8 + n) * STRIDE + m * (RANK + 4);
const bf16* right = (const bf16*)table[m * 3 + 1] + (size_t)slot.x * width;
right += column - (m == 0 ? 0 : m == 1 ? N0 : N0 + N1);
float factor = __int_as_float(slot.z);
if constexpr (NORM) {
  float square = 0.f;
#pragma unroll
  for (int s = 0; s < SPANS; s++) square += slot.y > 0 ? from[(size_t)s * num_tiles * 8 * STRIDE + RANK] : 0.f;
  factor *= rsqrtf(square / K + EPS);
}
#pragma unroll
for (int first = 0; first < RANK; first += HELD) {
  float held = 0.f;
  if (lane < HELD && first + lane < slot.y) {
#pragma unroll
    for (int s = 0; s < SPANS; s++) held += from[(size_t)s * num_tiles * 8 * STRIDE + first + lane];
  }
  uint2 v[HELD];
#pragma unroll
  for (int r = 0; r < HELD; r++)
    v[r] = first + r < slot.y ? __ldg((const uint2*)(right + (size_t)(first + r) * width)) : make_uint2(0, 0);
  held *= factor;
#pragma unroll
  for (int r = 0; r < HELD; r++) {
    const float by = __shfl_sync(~0u, held, r);
    y[0] += by * low(v[r].x), y[1] += by * high(v[r].x), y[2] += by * low(v[r].y), y[3] += by * high(v[r].y);
  }
}
*(uint2*)(out + at) = make_uint2(pack(y[0], y[1]), pack(y[2], y[3]));

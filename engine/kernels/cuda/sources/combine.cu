// Sums the parts of a product and adds what `added` holds; gated: silu(gate) * up, laid out by `place`. Four a thread.
const size_t size = (size_t)rows * width;
auto gather = [&](size_t index, int column) -> float4 {
  float4 y = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 4
  for (int s = 0; s < splits; s++) {
    const float4 p = *(const float4*)(parts + s * size + index);
    y.x += p.x, y.y += p.y, y.z += p.z, y.w += p.w;
  }
  if constexpr (ADDED) {
    const uint2 v = *(const uint2*)((const unsigned short*)added + (ADDED == 2 ? column : index));
    y.x += low(v.x), y.y += high(v.x), y.z += low(v.y), y.w += high(v.y);
  }
  return y;
};
const size_t index = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
if constexpr (GATED) {
  const int half = width / 2, row = index / half, column = index % half;
  if (row < rows) {
    const float4 a = gather((size_t)row * width + column, column), b = gather((size_t)row * width + half + column, half + column);
    const float gate[4] = {a.x, a.y, a.z, a.w}, up[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
      ((unsigned short*)out)[place<ORDER, TOKENS>(row, column + i, half)] = narrow(gate[i] / (1.f + __expf(-gate[i])) * up[i]);
  }
} else if (index < size) {
  const float4 y = gather(index, index % width);
  *(uint2*)((unsigned short*)out + index) = make_uint2(pack(y.x, y.y), pack(y.z, y.w));
}

// silu(gate) * up of rows that hold gate and up side by side, eight columns a thread.
const size_t index = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
const int row = index / (WIDTH / 8), column = index % (WIDTH / 8) * 8;
if (row < rows) {
  const unsigned short* line = (const unsigned short*)both + (size_t)row * 2 * WIDTH + column;
  const uint4 a = *(const uint4*)line, b = *(const uint4*)(line + WIDTH);
  auto act = [](u32 g, u32 u) {
    const float p = low(g), q = high(g);
    return pack(p / (1.f + __expf(-p)) * low(u), q / (1.f + __expf(-q)) * high(u));
  };
  ((uint4*)out)[index] = make_uint4(act(a.x, b.x), act(a.y, b.y), act(a.z, b.z), act(a.w, b.w));
}

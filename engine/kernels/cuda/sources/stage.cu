// What all layers read of a batch, from the host's pinned memory into the device's own: positions, slots and block
// tables, one after another; and the sine and cosine of each row's turns. Managed memory would fault on every step.
const int* letter = (const int*)(size_t)where[0];
const int rows = letter[0], cells = letter[2];
const int* from = letter + HEADER;
const int all = gridDim.x * blockDim.x, mine = blockIdx.x * blockDim.x + threadIdx.x;
for (int i = mine; i < cells; i += all) tables[i] = from[2 * rows + i];
for (int i = mine; i < rows; i += all) positions[i] = from[i], slots[i] = from[rows + i];
if (blockIdx.x < rows) {
  const int position = from[blockIdx.x];
  for (int e = threadIdx.x; e < D / 2; e += blockDim.x) {
    float sine, cosine;
    sincosf(position * (1.f / waves[e]), &sine, &cosine);
    ((float2*)turns)[(size_t)blockIdx.x * (D / 2) + e] = make_float2(cosine * MAGNITUDE, sine * MAGNITUDE);
  }
}

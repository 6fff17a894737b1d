// Numbers from the host's pinned memory into the device's own.
const int* letter = (const int*)(size_t)where[0];
for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < letter[0]; i += gridDim.x * blockDim.x) out[i] = letter[HEADER + i];

// Where arrays are in the device's memory.
#pragma unroll
for (int i = 0; i < COUNT; i++) out[i] = (long long)all[i];

// Where the arrays are that a product's adapters consist of: one input for a kernel instead of eleven.
const void* all[11] = {left0, right0, slots0, left1, right1, slots1, left2, right2, slots2, finished, lows};
#pragma unroll
for (int i = 0; i < 11; i++) out[i] = (long long)all[i];

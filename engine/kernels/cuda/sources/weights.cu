// Eight weights of one row as the left operand of two matrix products. The products' inner index may be permuted
// freely, so nibbles stay where a shift leaves them, (0,4) (1,5) (2,6) (3,7), and `pairs` orders activations alike.
__device__ __forceinline__ u32 both(u32 v, u32 selector) { return __byte_perm(v, 0, selector); }

__device__ __forceinline__ u32 word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <int BITS>
__device__ __forceinline__ void widen(u32 first, u32 second, u32 scale, u32 bias, u32* out) {
  if constexpr (BITS == 4) {
    const u32 w = first;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 q;
      asm("lop3.b32 %0, %1, 0x000f000f, 0x43004300, 0xea;" : "=r"(q) : "r"(w >> (4 * i)));
      out[i] = fma2(sub2(q, 0x43004300u), scale, bias);
    }
  } else {
    const float s = low(scale), b = low(bias);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const u32 w = i < 2 ? first : second;
      const float q0 = __uint_as_float(__byte_perm(w, 0x4B000000u, 0x7440 + (i & 1) * 2)) - 8388608.f;
      const float q1 = __uint_as_float(__byte_perm(w, 0x4B000000u, 0x7441 + (i & 1) * 2)) - 8388608.f;
      out[i] = pack(fmaf(q0, s, b), fmaf(q1, s, b));
    }
  }
}

// The same without scale and bias: each word's nibbles plus 128, (0,4) (1,5) (2,6) (3,7).
__device__ __forceinline__ void nibbles(u32 w, u32* out) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    asm("lop3.b32 %0, %1, 0x000f000f, 0x43004300, 0xea;" : "=r"(out[i]) : "r"(w >> (4 * i)));
}

template <int BITS>
__device__ __forceinline__ uint4 pairs(uint4 x) {
  if constexpr (BITS == 4) {
    return make_uint4(__byte_perm(x.x, x.z, 0x5410), __byte_perm(x.x, x.z, 0x7632), __byte_perm(x.y, x.w, 0x5410),
                      __byte_perm(x.y, x.w, 0x7632));
  }
  return x;
}
// For the halves of 8-bit weights, whose nibbles come in as (0,2) (1,3) of each word.
__device__ __forceinline__ uint4 crossed(uint4 x) {
  return make_uint4(__byte_perm(x.x, x.y, 0x5410), __byte_perm(x.x, x.y, 0x7632), __byte_perm(x.z, x.w, 0x5410),
                    __byte_perm(x.z, x.w, 0x7632));
}

template <int BITS>
__device__ __forceinline__ void times(float* acc, const u32* a, const u32* b, const uint4& x) {
  mma(acc, a[0], b[0], a[1], b[1], x.x, x.y);
  mma(acc, a[2], b[2], a[3], b[3], x.z, x.w);
}

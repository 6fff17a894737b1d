// Four lanes: NEON with fused multiply-add, which every arm64 has.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#define ALWAYS_INLINE __attribute__((always_inline))
#define INLINE static inline ALWAYS_INLINE

namespace genserve::ISA {

constexpr int LANES = 4;
constexpr int REGISTERS = 32;
using Vec = float32x4_t;
using Words = uint32x4_t;

INLINE Vec broadcast(float x) { return vdupq_n_f32(x); }
INLINE Vec zero() { return vdupq_n_f32(0.0f); }
INLINE Vec load(const float* p) { return vld1q_f32(p); }
INLINE void store(float* p, Vec a) { vst1q_f32(p, a); }
INLINE Vec load_first(const float* p, int n) {
  if (n >= LANES) return load(p);
  float some[LANES] = {};
  for (int i = 0; i < n; ++i) some[i] = p[i];
  return load(some);
}
INLINE void store_first(float* p, int n, Vec a) {
  if (n >= LANES) return store(p, a);
  float some[LANES];
  store(some, a);
  for (int i = 0; i < n; ++i) p[i] = some[i];
}

INLINE Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
INLINE Vec sub(Vec a, Vec b) { return vsubq_f32(a, b); }
INLINE Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
INLINE Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
INLINE Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
INLINE Vec max(Vec a, Vec b) { return vmaxnmq_f32(a, b); }
INLINE Vec min(Vec a, Vec b) { return vminnmq_f32(a, b); }
INLINE Vec abs(Vec a) { return vabsq_f32(a); }
INLINE Vec round_even(Vec a) { return vrndnq_f32(a); }
INLINE Vec times_power_of_two(Vec a, Vec n) {
  return mul(a, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)));
}
INLINE Vec where_less(Vec a, Vec b, Vec yes, Vec no) { return vbslq_f32(vcltq_f32(a, b), yes, no); }
INLINE Vec lane_numbers() { return Vec{0, 1, 2, 3}; }

INLINE Vec load(const uint16_t* p) {  // float16
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
INLINE void store(uint16_t* p, Vec a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
INLINE Vec load_bfloat(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
INLINE uint64_t four_bytes(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}
INLINE Vec load(const int8_t* p) {
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four_bytes(p))))));
}
INLINE Vec load(const uint8_t* p) {
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four_bytes(p))))));
}

INLINE Words load_words(const uint32_t* p) { return vld1q_u32(p); }
template <int N>
INLINE Words shift_right(Words w) {
  return vshrq_n_u32(w, N);
}
constexpr int PLACES = 2;
// BITS bits of every word, place * BITS from its lowest, as floats that are 2^(place * BITS) times too big.
template <int BITS>
INLINE Vec bits_at(Words w, int place) {
  return vcvtq_f32_u32(vandq_u32(w, vdupq_n_u32(((1u << BITS) - 1) << (place * BITS))));
}
template <int LOW, int HIGH>
INLINE Vec low_bits(Words low, Words high) {
  Words a = vandq_u32(low, vdupq_n_u32((1u << LOW) - 1));
  Words b = vandq_u32(high, vdupq_n_u32((1u << HIGH) - 1));
  return vcvtq_f32_u32(vorrq_u32(a, vshlq_n_u32(b, LOW)));
}

// Four sums at once; a vector is one run of four lanes, and joining has nothing to do.
INLINE Vec sum_runs(Vec a, Vec b, Vec c, Vec d) { return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d)); }
INLINE Vec join_runs(const Vec* r) { return r[0]; }
INLINE float sum(Vec a) {
  float32x2_t halves = vadd_f32(vget_low_f32(a), vget_high_f32(a));
  return vget_lane_f32(halves, 0) + vget_lane_f32(halves, 1);
}
INLINE float largest(Vec a) { return vmaxvq_f32(a); }
INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
// No nearer than the second cache.
INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace genserve::ISA

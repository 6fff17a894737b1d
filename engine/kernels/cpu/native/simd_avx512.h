// Sixteen lanes: AVX-512 F, BW, DQ and VL.
#pragma once
#include <immintrin.h>

#include <cstdint>

#define ALWAYS_INLINE __attribute__((always_inline))
#define INLINE static inline ALWAYS_INLINE

namespace genserve::ISA {

constexpr int LANES = 16;
constexpr int REGISTERS = 32;
using Vec = __m512;
using Words = __m512i;

INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
INLINE Vec zero() { return _mm512_setzero_ps(); }
INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a); }
INLINE Vec load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
INLINE void store_first(float* p, int n, Vec a) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }

INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
INLINE Vec round_even(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Vec times_power_of_two(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }
INLINE Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
INLINE Vec lane_numbers() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

INLINE Vec load(const uint16_t* p) {  // float16
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
INLINE void store(uint16_t* p, Vec a) {
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE Vec load_bfloat(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
INLINE Vec load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
INLINE Vec load(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

INLINE Words load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
template <int N>
INLINE Words shift_right(Words w) {
  return _mm512_srli_epi32(w, N);
}
constexpr int PLACES = 1;
// The lowest bits of every word as floats; a permutation reads four bits of an index, so it is a table of 0 to 15.
template <int BITS>
INLINE Vec bits_at(Words w, int) {
  if constexpr (BITS == 4) return _mm512_permutexvar_ps(w, lane_numbers());
  return _mm512_cvtepi32_ps(_mm512_and_si512(w, _mm512_set1_epi32((1 << BITS) - 1)));
}
template <int LOW, int HIGH>
INLINE Vec low_bits(Words low, Words high) {
  Words a = _mm512_and_si512(low, _mm512_set1_epi32((1 << LOW) - 1));
  Words b = _mm512_and_si512(high, _mm512_set1_epi32((1 << HIGH) - 1));
  return _mm512_cvtepi32_ps(_mm512_or_si512(a, _mm512_slli_epi32(b, LOW)));
}

// Four sums at once: in each run of four lanes, the sums of that run of a, b, c and d.
INLINE Vec sum_runs(Vec a, Vec b, Vec c, Vec d) {
  Vec ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  Vec cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  __m512d p = _mm512_castps_pd(ab), q = _mm512_castps_pd(cd);
  return add(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
}
// Lane 4 i + j of the answer: the sum over runs of lane j of r[i].
INLINE Vec join_runs(const Vec* r) {
  Vec a = add(_mm512_shuffle_f32x4(r[0], r[1], 0x88), _mm512_shuffle_f32x4(r[0], r[1], 0xdd));
  Vec b = add(_mm512_shuffle_f32x4(r[2], r[3], 0x88), _mm512_shuffle_f32x4(r[2], r[3], 0xdd));
  return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
INLINE float sum(Vec a) {
  __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
INLINE float largest(Vec a) {
  __m256 b = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// No nearer than the second cache.
INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace genserve::ISA

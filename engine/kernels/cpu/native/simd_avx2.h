// Eight lanes: AVX2, FMA and F16C.
#pragma once
#include <immintrin.h>

#include <cstdint>

#define ALWAYS_INLINE __attribute__((always_inline))
#define INLINE static inline ALWAYS_INLINE

namespace genserve::ISA {

constexpr int LANES = 8;
constexpr int REGISTERS = 16;
using Vec = __m256;
using Words = __m256i;

INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
INLINE Vec zero() { return _mm256_setzero_ps(); }
INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a); }
// A masked store takes some cores a dozen cycles.
INLINE Vec load_first(const float* p, int n) { return n >= LANES ? load(p) : _mm256_maskload_ps(p, first_lanes(n)); }
INLINE void store_first(float* p, int n, Vec a) {
  if (n >= LANES) return store(p, a);
  _mm256_maskstore_ps(p, first_lanes(n), a);
}

INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
INLINE Vec round_even(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Vec times_power_of_two(Vec a, Vec n) {
  __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return mul(a, _mm256_castsi256_ps(exponent));
}
INLINE Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE Vec lane_numbers() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

INLINE Vec load(const uint16_t* p) {  // float16
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
INLINE void store(uint16_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE Vec load_bfloat(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
INLINE Vec load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
INLINE Vec load(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

INLINE Words load_words(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
template <int N>
INLINE Words shift_right(Words w) {
  return _mm256_srli_epi32(w, N);
}
constexpr int PLACES = 2;
// BITS bits of every word, place * BITS from its lowest, as floats that are 2^(place * BITS) times too big.
template <int BITS>
INLINE Vec bits_at(Words w, int place) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(w, _mm256_set1_epi32(((1 << BITS) - 1) << (place * BITS))));
}
template <int LOW, int HIGH>
INLINE Vec low_bits(Words low, Words high) {
  Words a = _mm256_and_si256(low, _mm256_set1_epi32((1 << LOW) - 1));
  Words b = _mm256_and_si256(high, _mm256_set1_epi32((1 << HIGH) - 1));
  return _mm256_cvtepi32_ps(_mm256_or_si256(a, _mm256_slli_epi32(b, LOW)));
}

// Four sums at once: in each run of four lanes, the sums of that run of a, b, c and d.
INLINE Vec sum_runs(Vec a, Vec b, Vec c, Vec d) {
  return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
}
// Lane 4 i + j of the answer: the sum over runs of lane j of r[i].
INLINE Vec join_runs(const Vec* r) {
  return add(_mm256_permute2f128_ps(r[0], r[1], 0x20), _mm256_permute2f128_ps(r[0], r[1], 0x31));
}
INLINE float sum(Vec a) {
  __m128 c = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  c = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
INLINE float largest(Vec a) {
  __m128 c = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  c = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
// No nearer than the second cache.
INLINE void prefetch_far(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace genserve::ISA

// Four lanes in the compiler's own vectors: for every machine that has no column of its own.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#define ALWAYS_INLINE __attribute__((always_inline))
#define INLINE static inline ALWAYS_INLINE

namespace genserve::ISA {

constexpr int LANES = 4;
constexpr int REGISTERS = 16;
typedef float Vec __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

INLINE Vec broadcast(float x) { return Vec{x, x, x, x}; }
INLINE Vec zero() { return Vec{}; }
INLINE Vec load(const float* p) {
  Vec a;
  std::memcpy(&a, p, sizeof a);
  return a;
}
INLINE void store(float* p, Vec a) { std::memcpy(p, &a, sizeof a); }
INLINE Vec load_first(const float* p, int n) {
  Vec a{};
  for (int i = 0; i < n; ++i) a[i] = p[i];
  return a;
}
INLINE void store_first(float* p, int n, Vec a) {
  for (int i = 0; i < n; ++i) p[i] = a[i];
}

INLINE Vec add(Vec a, Vec b) { return a + b; }
INLINE Vec sub(Vec a, Vec b) { return a - b; }
INLINE Vec mul(Vec a, Vec b) { return a * b; }
INLINE Vec div(Vec a, Vec b) { return a / b; }
INLINE Vec choose(Ints yes_where, Vec yes, Vec no) {
  return reinterpret_cast<Vec>((reinterpret_cast<Ints>(yes) & yes_where) | (reinterpret_cast<Ints>(no) & ~yes_where));
}
INLINE Vec max(Vec a, Vec b) { return choose(a > b, a, b); }
INLINE Vec min(Vec a, Vec b) { return choose(a < b, a, b); }
INLINE Vec abs(Vec a) { return reinterpret_cast<Vec>(reinterpret_cast<Ints>(a) & 0x7fffffff); }
INLINE Vec where_less(Vec a, Vec b, Vec yes, Vec no) { return choose(a < b, yes, no); }
INLINE Vec lane_numbers() { return Vec{0, 1, 2, 3}; }
INLINE Vec round_even(Vec a) {
  for (int i = 0; i < LANES; ++i) a[i] = std::nearbyint(a[i]);
  return a;
}
INLINE Vec times_power_of_two(Vec a, Vec n) {
  Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return a * reinterpret_cast<Vec>(exponent);
}

INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }  // two roundings: a fused one costs a call on such machines
INLINE float half_to_float(uint16_t h) {
  uint32_t sign = (h & 0x8000u) << 16, rest = h & 0x7fffu, bits;
  if (rest >= 0x7c00u) {
    bits = (rest << 13) + 0x70000000u;  // infinity and NaN
  } else if (rest >= 0x0400u) {
    bits = (rest << 13) + 0x38000000u;
  } else {
    float small = static_cast<float>(rest) * 0x1p-24f;
    std::memcpy(&bits, &small, 4);
  }
  bits |= sign;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
INLINE uint16_t float_to_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (bits < 0x38800000u) {  // subnormal: the addition rounds to the right place, to even
    float magnitude, moved;
    std::memcpy(&magnitude, &bits, 4);
    moved = magnitude + 0.5f;
    uint32_t m;
    std::memcpy(&m, &moved, 4);
    return static_cast<uint16_t>(sign | (m - 0x3f000000u));
  }
  bits += 0xc8000fffu + ((bits >> 13) & 1);
  return static_cast<uint16_t>(sign | (bits >> 13));
}
INLINE Vec load(const uint16_t* p) {
  return Vec{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
}
INLINE void store(uint16_t* p, Vec a) {
  for (int i = 0; i < LANES; ++i) p[i] = float_to_half(a[i]);
}

INLINE Vec load_bfloat(const uint16_t* p) {
  return reinterpret_cast<Vec>(Words{p[0], p[1], p[2], p[3]} << 16);
}
INLINE Vec load(const int8_t* p) { return __builtin_convertvector((Ints{p[0], p[1], p[2], p[3]}), Vec); }
INLINE Vec load(const uint8_t* p) { return __builtin_convertvector((Ints{p[0], p[1], p[2], p[3]}), Vec); }

INLINE Words load_words(const uint32_t* p) {
  Words w;
  std::memcpy(&w, p, sizeof w);
  return w;
}
template <int N>
INLINE Words shift_right(Words w) {
  return w >> N;
}
constexpr int PLACES = 2;
// BITS bits of every word, place * BITS from its lowest, as floats that are 2^(place * BITS) times too big.
template <int BITS>
INLINE Vec bits_at(Words w, int place) {
  return __builtin_convertvector((Ints)(w & (((1u << BITS) - 1) << (place * BITS))), Vec);
}
template <int LOW, int HIGH>
INLINE Vec low_bits(Words low, Words high) {
  return __builtin_convertvector((Ints)((low & ((1u << LOW) - 1)) | ((high & ((1u << HIGH) - 1)) << LOW)), Vec);
}

// Four sums at once; here a vector is one run of four lanes, and joining has nothing to do.
INLINE Vec sum_runs(Vec a, Vec b, Vec c, Vec d) {
  return Vec{a[0], b[0], c[0], d[0]} + Vec{a[1], b[1], c[1], d[1]} +
         (Vec{a[2], b[2], c[2], d[2]} + Vec{a[3], b[3], c[3], d[3]});
}
INLINE Vec join_runs(const Vec* r) { return r[0]; }
INLINE float sum(Vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
INLINE float largest(Vec a) {
  float p = a[0] > a[2] ? a[0] : a[2], q = a[1] > a[3] ? a[1] : a[3];
  return p > q ? p : q;
}
INLINE void prefetch(const void* p) { __builtin_prefetch(p); }
// No nearer than the second cache.
INLINE void prefetch_far(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace genserve::ISA

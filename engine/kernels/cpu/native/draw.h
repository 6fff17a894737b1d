// One token of one row's logits, as `engine.sampling.draw` defines it, without sorting the vocabulary.
//
// Scaled logits lie in (-inf, 0], so their distances from the largest are non-negative floats, which order as their
// bits do. A cut by rank or by weight is then found by three histograms of those bits, each of one bucket of the last.
#pragma once
#include <cstring>

#include "kernels.h"
#include "rows.h"

namespace genserve::ISA {

INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

int argmax(const float* logits, int size) {
  Vec biggest = broadcast(-__builtin_inff());
  int i = 0;
  for (; i + LANES <= size; i += LANES) biggest = max(biggest, load(logits + i));
  float most = largest(biggest);
  for (; i < size; ++i) most = logits[i] > most ? logits[i] : most;
  for (i = 0; i < size; ++i)
    if (logits[i] == most) return i;
  return 0;
}

// The largest distance, of those not above `highest`, before which stands less than `limit` of weight (or, without
// weights, of count). The nearest one always passes.
INLINE float cut_at(const float* distances, const float* weights, int size, float highest, double limit) {
  constexpr int SHIFTS[3] = {20, 10, 0}, BUCKETS[3] = {2048, 1024, 1024};
  double held[2048];
  bool is_met[2048];
  uint32_t prefix = 0;
  double before = 0;
  for (int level = 0; level < 3; ++level) {
    std::memset(held, 0, sizeof held);
    std::memset(is_met, 0, sizeof is_met);
    const uint32_t mask = static_cast<uint32_t>(BUCKETS[level] - 1);
    const int above = level == 0 ? 31 : SHIFTS[level - 1];
    for (int i = 0; i < size; ++i) {
      const uint32_t bits = bits_of(distances[i]);
      if (!(distances[i] <= highest) || bits >> above != prefix >> above) continue;
      const uint32_t bucket = bits >> SHIFTS[level] & mask;
      held[bucket] += weights == nullptr ? 1.0 : weights[i];
      is_met[bucket] = true;
    }
    uint32_t found = 0;
    double found_before = before;
    bool is_found = false;
    for (int bucket = 0; bucket < BUCKETS[level]; ++bucket) {
      if (!is_met[bucket]) continue;
      if (is_found && before >= limit) break;
      found = static_cast<uint32_t>(bucket);
      found_before = before;
      is_found = true;
      before += held[bucket];
    }
    prefix |= found << SHIFTS[level];
    before = found_before;
  }
  float cut;
  std::memcpy(&cut, &prefix, sizeof cut);
  return cut;
}

// knobs: temperature, top_k, top_p, min_p, uniform. Scratch holds two floats a token.
int draw(const float* logits, int size, const float* knobs, float* scratch) {
  const float temperature = knobs[0], top_k = knobs[1], top_p = knobs[2], min_p = knobs[3];
  const int top = argmax(logits, size);
  if (!(temperature > 0)) return top;
  float *distances = scratch, *weights = scratch + size;
  Vec from = broadcast(logits[top]), heat = broadcast(temperature > 1e-6f ? temperature : 1e-6f);
  for (int i = 0; i < size; i += LANES) {
    const int n = size - i < LANES ? size - i : LANES;
    Vec away = div(sub(from, load_first(logits + i, n)), heat);
    store_first(distances + i, n, away);
    store_first(weights + i, n, exp(sub(zero(), away)));
  }
  float highest = min_p > 0 ? -__builtin_logf(min_p) : __builtin_inff();
  float by_count = __builtin_inff();
  if (top_k > 0 && top_k < size) by_count = cut_at(distances, nullptr, size, by_count, top_k);
  if (top_p < 1) {
    double total = 0;
    for (int i = 0; i < size; ++i) total += distances[i] <= by_count ? weights[i] : 0.0f;
    by_count = cut_at(distances, weights, size, by_count, static_cast<double>(top_p) * total);
  }
  highest = by_count < highest ? by_count : highest;

  double total = 0;
  for (int i = 0; i < size; ++i) {
    if (!(distances[i] <= highest)) weights[i] = 0;
    total += weights[i];
  }
  const double goal = static_cast<double>(knobs[4]) * total;
  double passed = 0;
  int last_kept = top;
  for (int i = 0; i < size; ++i) {
    if (weights[i] == 0) continue;
    passed += weights[i];
    last_kept = i;
    if (passed > goal) return i;
  }
  return last_kept;
}

}  // namespace genserve::ISA

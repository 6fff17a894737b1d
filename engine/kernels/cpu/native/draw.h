// One token of one row's logits, as `engine.sampling.draw` defines it, without sorting the vocabulary.
//
// The vocabulary is looked at in runs of tokens: most of them hold none that can stay, and their largest logit or their
// weight tells so. Scaled logits lie in (-inf, 0], so their distances from the largest are non-negative floats, which
// order as their bits do. A cut by rank or by weight is then found by three histograms of those bits, each of one bucket
// of the last.
#pragma once
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "rows.h"

namespace genserve::ISA {

constexpr int RUN = DRAW_RUN;

INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
INLINE int end_of(int run, int size) { return (run + 1) * RUN < size ? (run + 1) * RUN : size; }

// The largest of each run, and of all.
INLINE float find_peaks(const float* x, int size, float* peaks) {
  float most = -__builtin_inff();
  for (int run = 0; run * RUN < size; ++run) {
    const int end = end_of(run, size);
    Vec biggest = broadcast(-__builtin_inff());
    int i = run * RUN;
    for (; i + LANES <= end; i += LANES) biggest = max(load(x + i), biggest);
    float peak = largest(biggest);
    for (; i < end; ++i) peak = x[i] > peak ? x[i] : peak;
    peaks[run] = peak;
    most = peak > most ? peak : most;
  }
  return most;
}

INLINE int first_of(const float* x, int size, const float* peaks, float most) {
  for (int run = 0; run * RUN < size; ++run)
    for (int i = run * RUN; peaks[run] == most && i < end_of(run, size); ++i)
      if (x[i] == most) return i;
  return 0;
}

int argmax(const float* logits, int size, float* scratch) {
  const float most = find_peaks(logits, size, scratch);
  return first_of(logits, size, scratch, most);
}

// The largest distance before which stands less than `limit` of weight (or, without weights, of count). The nearest one
// always passes.
INLINE float cut_at(const float* distances, const float* weights, int size, double limit) {
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
      if (bits >> above != prefix >> above) continue;
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

// What can be drawn, in the vocabulary's order.
struct Candidates {
  float *distances, *weights, *sums;  // sums of each run's weights
  int32_t* tokens;
  int size;
  bool is_all;  // then the i-th is token i

  int token(int i) const { return is_all ? i : tokens[i]; }

  // Those of logits not below `least`.
  void gather(const float* logits, int vocabulary, const float* peaks, float least) {
    size = 0;
    is_all = false;
    for (int run = 0; run * RUN < vocabulary; ++run)
      for (int i = run * RUN; peaks[run] >= least && i < end_of(run, vocabulary); ++i)
        if (logits[i] >= least) {
          distances[size] = logits[i];
          tokens[size++] = i;
        }
  }
  // Only those of weights not below `least`.
  void keep_heavy(float least) {
    int kept = 0;
    for (int run = 0; run * RUN < size; ++run)
      for (int i = run * RUN; sums[run] >= least && i < end_of(run, size); ++i)
        if (weights[i] >= least) {
          distances[kept] = distances[i];
          weights[kept] = weights[i];
          tokens[kept++] = token(i);
        }
    size = kept;
    is_all = false;
  }
  // Distances and weights of these logits.
  void weigh(const float* logits, float most, float heat) {
    for (int i = 0; i < size; i += LANES) {
      const int n = size - i < LANES ? size - i : LANES;
      const Vec away = div(sub(broadcast(most), load_first(logits + i, n)), broadcast(heat));
      store_first(distances + i, n, away);
      const Vec weight = exp(sub(zero(), away));  // of what is no number, nothing
      store_first(weights + i, n, where_less(away, broadcast(__builtin_inff()), weight, zero()));
    }
  }
  // The sum of all weights; beyond `highest` they become 0.
  double sum_up_to(float highest) {
    double total = 0;
    for (int run = 0; run * RUN < size; ++run) {
      Vec own = zero();
      for (int i = run * RUN; i < end_of(run, size); i += LANES) {
        const int n = end_of(run, size) - i < LANES ? end_of(run, size) - i : LANES;
        Vec weight = where_less(broadcast(highest), load_first(distances + i, n), zero(), load_first(weights + i, n));
        store_first(weights + i, n, weight);
        own = add(own, weight);
      }
      sums[run] = sum(own);
      total += sums[run];
    }
    return total;
  }
  // The token at which the weights, laid end to end, pass `goal`.
  int at(double goal) const {
    double passed = 0;
    for (int run = 0; run * RUN < size; ++run) {
      if (passed + sums[run] <= goal) {
        passed += sums[run];
        continue;
      }
      for (int i = run * RUN; i < end_of(run, size); ++i)
        if (passed += weights[i]; passed > goal) return token(i);
    }
    int last = size - 1;  // rounding must not run past the last one that stays
    while (last > 0 && weights[last] == 0) --last;
    return token(last);
  }
};

// A logit that `count` tokens reach at least, so that none below is among the `count` largest.
INLINE float reached_by(int count, const float* peaks, int num_runs, float* scratch) {
  if (count > num_runs) return -__builtin_inff();
  std::memcpy(scratch, peaks, num_runs * sizeof *peaks);
  std::nth_element(scratch, scratch + count - 1, scratch + num_runs, [](float a, float b) { return a > b; });
  return scratch[count - 1];
}

// knobs: temperature, top_k, top_p, min_p, uniform
int draw(const float* logits, int size, const float* knobs, float* scratch) {
  const float temperature = knobs[0], top_k = knobs[1], top_p = knobs[2], min_p = knobs[3];
  const int num_runs = (size + RUN - 1) / RUN;
  const bool has_rank = top_k > 0 && top_k < size, has_share = top_p < 1;
  float* runs = scratch + static_cast<size_t>(3) * size;
  const float most = find_peaks(logits, size, runs);
  const int top = first_of(logits, size, runs, most);
  if (!(temperature > 0)) return top;
  const float heat = temperature > 1e-6f ? temperature : 1e-6f;
  const float furthest = min_p > 0 ? -__builtin_logf(min_p) : __builtin_inff();

  auto* tokens = reinterpret_cast<int32_t*>(scratch + static_cast<size_t>(2) * size);
  Candidates some{scratch, scratch + size, runs, tokens, size, true};
  float least = has_rank ? reached_by(static_cast<int>(top_k), runs, num_runs, scratch) : -__builtin_inff();
  if (min_p > 0 && !has_share) {  // else the light ones count as well
    const float lowest = most - furthest * heat;
    least = lowest > least ? lowest : least;
  }
  least -= 1e-5f * (most - least + (most < 0 ? -most : most));  // as distances are rounded, and decide
  if (least > -__builtin_inff()) some.gather(logits, size, runs, least);
  some.weigh(some.is_all ? logits : some.distances, most, heat);

  float highest = has_rank ? cut_at(some.distances, nullptr, some.size, top_k) : __builtin_inff();
  if (has_share) {
    const double total = some.sum_up_to(highest);
    // Those lighter than this weigh less together than what top_p leaves out, so no one of them stays.
    some.keep_heavy(static_cast<float>((1 - static_cast<double>(top_p)) * total / some.size * 0.999));
    if (some.size == 0) return top;  // no numbers that mean anything
    highest = cut_at(some.distances, some.weights, some.size, static_cast<double>(top_p) * total);
  }
  const double total = some.sum_up_to(furthest < highest ? furthest : highest);
  return some.at(static_cast<double>(knobs[4]) * total);
}

}  // namespace genserve::ISA

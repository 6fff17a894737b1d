// Softmax attention of some queries to one split of their sequence's keys.
//
// Queries that share a key head go together, so that a key is read once for all of them. Scores are sums over lanes
// of dimensions, joined by one fixed tree; values are added key after key. What scales a cached vector is given to its
// score or weight. A split is SPLIT keys counted from position 0, whatever the chunk, so a row meets the same splits in
// decode and in prefill. Behind the last key lie more, the next split's or the last again, for who takes some together.
//
// A long context is as slow as the memory, so its keys and values come in one stream that never rests: who works on
// some keys asks for those that follow, at the end for the first values, and there for the next split's keys, if these
// are next; and what has to be computed besides (largest scores, weights) is computed between keys.
#pragma once
#include <type_traits>

#include "cached.h"
#include "kernels.h"
#include "queries.h"
#include "rows.h"

namespace genserve::ISA {

INLINE float minus_infinity() { return -__builtin_inff(); }

constexpr int TOGETHER = 16;  // values that are added for one head before the next has its turn
static_assert(SPLIT % TOGETHER == 0 && TOGETHER % LANES == 0 && AHEAD % TOGETHER == 0);

// Sizes that are known when this is compiled fill their vectors.
template <int SIZE>
INLINE HeadSize<SIZE> padded(HeadSize<SIZE> size) {
  return HeadSize<SIZE>{(size + LANES - 1) / LANES * LANES};
}

// Scores of keys [key, key + LANES), -inf where query n does not see them.
INLINE Vec only_seen(const Queries& queries, int n, int key, Vec scores) {
  const int first = queries.first[n], last = queries.last[n];
  if (first <= key && key + LANES <= last) return scores;
  const Vec least = broadcast(minus_infinity()), each = add(lane_numbers(), broadcast(static_cast<float>(key)));
  const Vec from = broadcast(static_cast<float>(first)), to = broadcast(static_cast<float>(last));
  return where_less(each, from, least, where_less(each, to, scores, least));
}

// Weights in place of one query's scores in `run`, each times its value's scale; and what they add to the sum. Vectors
// that it sees nothing of are left out, whatever stands beside it: where a score has overflowed, not even a weight of
// what is not seen would be zero.
template <class Values>
INLINE Vec weigh(float* scores, const Queries& queries, int n, Run run, Vec most, const float* scales, Vec total) {
  const Run own = seen(queries, n, run.first, run.last);
  for (int i = own.first / LANES * LANES; i < own.last; i += LANES) {
    const Vec weight = exp(sub(load(scores + i), most));
    store(scores + i, scaled<Values>(weight, scales + i - run.first));
    total = add(total, weight);
  }
  return total;
}

// Calls with how many of `count` queries go together, four at most, and with the first of them.
template <class Call>
INLINE void by_fours(int count, const Call& call) {
  for (int n = 0; n < count; n += 4) switch (count - n) {
      case 1: call(std::integral_constant<int, 1>(), n); break;
      case 2: call(std::integral_constant<int, 2>(), n); break;
      case 3: call(std::integral_constant<int, 3>(), n); break;
      default: call(std::integral_constant<int, 4>(), n);
    }
}

INLINE Run span(const Queries& queries) {
  Run run{SPLIT, 0};
  for (int n = 0; n < queries.count; ++n) {
    if (queries.first[n] >= queries.last[n]) continue;
    run.first = queries.first[n] < run.first ? queries.first[n] : run.first;
    run.last = queries.last[n] > run.last ? queries.last[n] : run.last;
  }
  run.first = run.first / LANES * LANES;
  return run;
}

// What is asked for while `size` keys of a run are worked on: what lies AHEAD, or what is read when the run has ended.
template <class Vectors>
INLINE Asking later_than(
    int key, int size, int num_heads, Run run, const Vectors& now, const Vectors& then, Run run_then) {
  const int later = key + AHEAD;
  if (later < run.last) return now.asking(later, later + size, num_heads);
  const Run some = run_then.part(run_then.first + later - run.end(), size);
  return then.asking(some.first, some.last, num_heads);
}

// Keys outermost, so that the cache is read in its own order.
template <class Vectors>
void attend_with(
    const Queries& queries, const Vectors& keys, const Vectors& values, int num_heads, int num_slots, auto size,
    float* scores, Partial* partials, float* out) {
  constexpr int MAX_HEADS = Vectors::IS_NEAR ? 1 : MAX_QUERIES;
  constexpr int WEIGHED = Vectors::IS_NEAR ? SPLIT : TOGETHER;  // scores that become weights between keys
  const Run run = span(queries), following{SPLIT, num_slots};
  const int each = queries.count / num_heads;
  const auto scores_of = [scores](int n) { return scores + static_cast<size_t>(n) * SPLIT; };
  Vec scored[MAX_QUERIES], biggest[MAX_QUERIES], sums[MAX_QUERIES];
  alignas(64) float key_scales[MAX_HEADS][LANES], value_scales[MAX_HEADS][WEIGHED];
  const auto find_all_scales = [num_heads](const Vectors& vectors, Run some, auto* scales) ALWAYS_INLINE {
    if constexpr (Vectors::IS_SCALED)
      for (int head = 0; head < num_heads; ++head) find_scales(vectors, head, some.first, some.end(), scales[head]);
  };

  for (int n = 0; n < queries.count; ++n) biggest[n] = broadcast(minus_infinity());
  for (int key = run.first - AHEAD; key < run.first; key += LANES) {  // nobody has asked for the first ones
    Asking now = later_than(key, LANES, num_heads, run, keys, values, run);
    while (now.count > 0) now.next(keys.bytes());
  }
  for (int key = run.first; key < run.last; key += LANES) {
    const Run some = run.part(key, LANES);
    find_all_scales(keys, some, key_scales);
    Asking later = later_than(key, LANES, num_heads, run, keys, values, run);
    by_fours(each, [&](auto many, int of_head) ALWAYS_INLINE {
      for (int head = 0; head < num_heads; ++head) {
        const int n = head * each + of_head;
        score<many.value>(queries.q + n, keys, later, head, key, size, scored + n);
      }
    });
    for (int n = 0; n < queries.count; ++n) {
      const Run own = seen(queries, n, some.first, some.last);
      if (own.first >= own.last) continue;
      const Vec all = scaled<Vectors>(scored[n], key_scales[n / each]);
      const Vec scores = only_seen(queries, n, key, all);
      biggest[n] = max(biggest[n], scores);
      store(scores_of(n) + key, scores);
    }
  }

  Run seen_by_all{0, SPLIT};
  for (int n = 0; n < queries.count; ++n) {
    partials[n].largest = largest(biggest[n]);
    biggest[n] = broadcast(partials[n].largest);
    sums[n] = zero();
    seen_by_all = seen(queries, n, seen_by_all.first, seen_by_all.last);
  }
  for (size_t i = 0; i < static_cast<size_t>(queries.count) * size; i += LANES) store(out + i, zero());
  for (int key = run.first; key < run.last; key += TOGETHER) {
    if ((key - run.first) % WEIGHED == 0) {
      const Run weighed = run.part(key, WEIGHED);
      find_all_scales(values, weighed, value_scales);
      for (int n = 0; n < queries.count; ++n)
        sums[n] = weigh<Vectors>(
            scores_of(n), queries, n, weighed, biggest[n], value_scales[n / each], sums[n]);
    }
    const Run some = run.part(key, TOGETHER);
    const bool is_joint = seen_by_all.first <= some.first && some.last <= seen_by_all.last;
    Asking later = later_than(key, TOGETHER, num_heads, run, values, keys, following);
    by_fours(each, [&](auto many, int of_head) ALWAYS_INLINE {
      for (int head = 0; head < num_heads; ++head) {
        const int n = head * each + of_head;
        const float* weights = scores_of(n);
        float* to = out + static_cast<size_t>(n) * size;
        if (is_joint)
          add_values<many.value>(weights, values, later, head, some.first, some.last, size, to);
        else
          add_values_of<many.value>(queries, n, weights, values, later, head, some, size, to);
      }
    });
  }
  for (int n = 0; n < queries.count; ++n) partials[n].sum = queries.first[n] < queries.last[n] ? sum(sums[n]) : 0.0f;
}

template <class Vectors>
INLINE void widen(Vectors from, Run run, auto size, float* out) {
  for (int first = run.first; first < run.last; first += LANES) {
    Asking later = from.asking(first + AHEAD, run.part(first + AHEAD, LANES).last, 1);
    for (int key = first; key < first + LANES; ++key) {
      later.next(from.bytes());
      const auto each = from(key, 0);
      for (int i = 0; i < size; i += LANES) store(out + static_cast<size_t>(key) * size + i, each.at(i));
    }
  }
}

template <Format FORMAT, int SIZE>
void attend_in(
    const Queries& queries, const Cache& cache, int head, int num_heads, const int32_t* slots, int num_slots,
    float* scores, float* spare, Partial* partials, float* out) {
  using Type = typename Element<FORMAT>::Type;
  const HeadSize<SIZE> exact{cache.head_dim}, size = padded(exact);
  const Cached<FORMAT, SIZE> keys{
      reinterpret_cast<const Type*>(cache.keys), cache.key_scales, slots, cache.heads, head, exact};
  const Cached<FORMAT, SIZE> values{
      reinterpret_cast<const Type*>(cache.values), cache.value_scales, slots, cache.heads, head, exact};
  if (num_heads > 1 || queries.count <= 4)  // few rows: not worth floats in memory
    return attend_with(queries, keys, values, num_heads, num_slots, size, scores, partials, out);
  float *wide_values = spare + static_cast<size_t>(SPLIT) * size, key_scales[SPLIT], value_scales[SPLIT];
  find_scales(keys, 0, 0, SPLIT, key_scales);
  find_scales(values, 0, 0, SPLIT, value_scales);
  widen(keys, span(queries), size, spare);
  widen(values, span(queries), size, wide_values);
  const Widened<SIZE> all_keys{spare, key_scales, size}, all_values{wide_values, value_scales, size};
  attend_with(queries, all_keys, all_values, 1, num_slots, size, scores, partials, out);
}

template <Format FORMAT>
void attend_as(
    const Queries& queries, const Cache& cache, int head, int num_heads, const int32_t* slots, int num_slots,
    float* scores, float* spare, Partial* partials, float* out) {
  const auto run = cache.head_dim == 64    ? attend_in<FORMAT, 64>
                   : cache.head_dim == 128 ? attend_in<FORMAT, 128>
                                           : attend_in<FORMAT, 0>;
  run(queries, cache, head, num_heads, slots, num_slots, scores, spare, partials, out);
}

void attend(
    const Queries& queries, const Cache& cache, int head, int num_heads, const int32_t* slots, int num_slots,
    float* scores, float* spare, Partial* partials, float* out) {
  const auto run = cache.format == Format::float16 ? attend_as<Format::float16>
                   : cache.format == Format::int8  ? attend_as<Format::int8>
                                                   : attend_as<Format::float32>;
  run(queries, cache, head, num_heads, slots, num_slots, scores, spare, partials, out);
}

// None between infinities, and none where a score is no number: so of two factors one is always 1, no sum of something
// becomes 0, and it is all the same whether partials are joined at once or one by one.
INLINE float distance(float a, float b) {
  const float difference = a - b;
  return difference == difference ? difference : 0.0f;
}

// One query's partials as one, joined in their order to what is there; every `stride`th of some partials is its own.
// A sum of 0 is nothing yet, and `out` is zeros then.
void join(
    Partial& into, float* out, const Partial* others, const float* other_outs, int count, int stride, int size) {
  for (int first = 0; first < count; first += LANES) {
    const int some = count - first < LANES ? count - first : LANES;
    const Partial* each = others + static_cast<size_t>(first) * stride;
    const float* each_out = other_outs + static_cast<size_t>(first) * stride * size;
    alignas(64) float shrink[LANES] = {}, weight[LANES] = {};  // of what is there already, and of the other
    float largest = into.largest;
    bool is_empty = into.sum == 0.0f;
    for (int i = 0; i < some; ++i) {
      const Partial& other = each[static_cast<size_t>(i) * stride];
      if (other.sum == 0.0f) {
        weight[i] = minus_infinity();
        continue;
      }
      const float so_far = is_empty ? other.largest : largest;
      largest = so_far > other.largest ? so_far : other.largest;
      shrink[i] = distance(so_far, largest);
      weight[i] = distance(other.largest, largest);
      is_empty = false;
    }
    store(shrink, exp(load(shrink)));
    store(weight, exp(load(weight)));
    into.largest = largest;
    for (int i = 0; i < some; ++i)
      into.sum = into.sum * shrink[i] + each[static_cast<size_t>(i) * stride].sum * weight[i];
    for (int d = 0; d < size; d += LANES) {
      Vec all = load(out + d);
      for (int i = 0; i < some; ++i)
        all = fma(
            load(each_out + static_cast<size_t>(i) * stride * size + d), broadcast(weight[i]),
            mul(all, broadcast(shrink[i])));
      store(out + d, all);
    }
  }
}

}  // namespace genserve::ISA

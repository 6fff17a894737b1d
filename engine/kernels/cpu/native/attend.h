// Softmax attention of some queries to one split of their sequence's keys.
//
// Queries that share a key head go together, so that a key is read once for all of them. Scores are sums over lanes
// of dimensions, joined by one fixed tree; values are added key after key. A split is SPLIT keys counted from
// position 0, whatever the chunk, so a row meets the same splits in decode and in prefill.
#pragma once
#include "cached.h"
#include "kernels.h"
#include "rows.h"

namespace genserve::ISA {

INLINE float minus_infinity() { return -__builtin_inff(); }

constexpr int TOGETHER = 32;  // values that are added for one head before the next has its turn

// Sizes that are known when this is compiled fill their vectors.
template <int SIZE>
INLINE HeadSize<SIZE> padded(HeadSize<SIZE> size) {
  return HeadSize<SIZE>{(size + LANES - 1) / LANES * LANES};
}

// Products of N queries with four keys, summed over runs of four lanes.
template <int N, class Keys>
INLINE void score(const float* const* q, const Keys& keys, int head, int key, int last, auto size, Vec* runs) {
  const auto key0 = keys(key < last ? key : last - 1, head), key1 = keys(key + 1 < last ? key + 1 : last - 1, head);
  const auto key2 = keys(key + 2 < last ? key + 2 : last - 1, head);
  const auto key3 = keys(key + 3 < last ? key + 3 : last - 1, head);
  for (int j = 0; j < 4; ++j) keys.ask(key + AHEAD + j, head);
  const decltype(key0) each[4] = {key0, key1, key2, key3};
  constexpr int EACH = N * 4 + N < REGISTERS ? 4 : 2;  // keys whose sums fit into the registers
  Vec sums[N][4];
#pragma GCC unroll 2
  for (int first = 0; first < 4; first += EACH) {
    Vec own[N][EACH];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
      for (int j = 0; j < EACH; ++j) own[n][j] = zero();
    for (int i = 0; i < size; i += LANES) {
      Vec query[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) query[n] = load(q[n] + i);
#pragma GCC unroll 4
      for (int j = 0; j < EACH; ++j) {
        const Vec k = each[first + j].at(i);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) own[n][j] = fma(k, query[n], own[n][j]);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
      for (int j = 0; j < EACH; ++j) sums[n][first + j] = own[n][j];
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) runs[n * (LANES / 4)] = sum_runs(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
}

// out[n] += weights[n][key] * value of keys [first, last), N queries, V vectors of dimensions from `i` on.
template <int N, int V, class Values>
INLINE void add_values(
    const float* weights, const Values& values, int head, int first, int last, int i, int stride, float* out) {
  Vec sums[N][V];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[n][v] = load(out + static_cast<size_t>(n) * stride + i + v * LANES);
  for (int key = first; key < last; ++key) {
    const auto value = values(key, head);
    if (i == 0) values.ask(key + AHEAD, head);
    Vec weight[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) weight[n] = broadcast(weights[n * SPLIT + key]);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const Vec each = value.at(i + v * LANES);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sums[n][v] = fma(each, weight[n], sums[n][v]);
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + static_cast<size_t>(n) * stride + i + v * LANES, sums[n][v]);
}

template <int N, class Values>
void add_values(
    const float* weights, const Values& values, int head, int first, int last, auto size, float* out) {
  if (first >= last) return;
  int i = 0;
  constexpr int V = N * 4 + N < REGISTERS ? 4 : 2;  // vectors of sums that fit into the registers
  for (; i + V * LANES <= size; i += V * LANES) add_values<N, V>(weights, values, head, first, last, i, size, out);
  for (; i < size; i += LANES) add_values<N, 1>(weights, values, head, first, last, i, size, out);
}

// Weights of one query's keys in [first, last), zero beside them; -inf and 0 if it sees none.
INLINE Partial soften(float* scores, int first, int last) {
  if (first >= last) return {minus_infinity(), 0.0f};
  const int begin = first / LANES * LANES;
  Vec least = broadcast(minus_infinity()), biggest = least, from = broadcast(static_cast<float>(first));
  Vec to = broadcast(static_cast<float>(last));
  for (int i = begin; i < last; i += LANES) {
    Vec key = add(lane_numbers(), broadcast(static_cast<float>(i)));
    Vec s = where_less(key, from, least, where_less(key, to, load(scores + i), least));
    store(scores + i, s);
    biggest = max(biggest, s);
  }
  Partial p{largest(biggest), 0.0f};
  Vec sums = zero();
  for (int i = begin; i < last; i += LANES) {
    Vec weight = exp(sub(load(scores + i), broadcast(p.largest)));
    store(scores + i, weight);
    sums = add(sums, weight);
  }
  p.sum = sum(sums);
  return p;
}

// The keys of [first, last) that query n sees.
struct Run {
  int first, last;
};
INLINE Run seen(const Queries& queries, int n, int first, int last) {
  return {queries.first[n] > first ? queries.first[n] : first, queries.last[n] < last ? queries.last[n] : last};
}

// Each query sees its own run of keys: what all N see goes together, the rest one by one, always in order.
template <int N, class Values>
void add_values_of(
    const Queries& queries, int n0, const float* weights, const Values& values, int head, Run run, auto size,
    float* out) {
  Run joint = run;
  for (int n = n0; n < n0 + N; ++n) joint = seen(queries, n, joint.first, joint.last);
  const bool is_joint = joint.first < joint.last;
  for (int n = 0; n < N; ++n) {
    const Run own = seen(queries, n0 + n, run.first, run.last);
    const int last = is_joint ? joint.first : own.last;
    add_values<1>(weights + n * SPLIT, values, head, own.first, last, size, out + static_cast<size_t>(n) * size);
  }
  if (!is_joint) return;
  add_values<N>(weights, values, head, joint.first, joint.last, size, out);
  for (int n = 0; n < N; ++n) {
    const Run own = seen(queries, n0 + n, run.first, run.last);
    add_values<1>(weights + n * SPLIT, values, head, joint.last, own.last, size, out + static_cast<size_t>(n) * size);
  }
}

#define GENSERVE_UP_TO_FOUR(n, CALL) \
  switch (n) {                       \
    case 1: CALL(1); break;          \
    case 2: CALL(2); break;          \
    case 3: CALL(3); break;          \
    default: CALL(4); break;         \
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

// Nobody has asked for the first ones.
template <class Vectors>
INLINE void ask_first(const Vectors& vectors, Run run, int num_heads) {
  for (int key = run.first; key < run.last && key < run.first + AHEAD; ++key)
    for (int head = 0; head < num_heads; ++head) vectors.ask(key, head);
}

// Keys outermost, so that the cache is read in its own order.
template <class Keys, class Values>
void attend_with(
    const Queries& queries, Keys keys, Values values, int num_heads, auto size, float* scores,
    Partial* partials, float* out) {
  const Run run = span(queries);
  const int each = queries.count / num_heads;
  Vec runs[MAX_QUERIES][LANES / 4];
  ask_first(keys, run, num_heads);
  for (int key = run.first; key < run.last; key += LANES) {
    for (int head = 0; head < num_heads; ++head)
      for (int n = head * each; n < (head + 1) * each; n += 4)
        for (int part = 0; part < LANES / 4; ++part) {
#define GENSERVE_CALL(N) score<N>(queries.q + n, keys, head, key + 4 * part, run.last, size, &runs[n][part])
          GENSERVE_UP_TO_FOUR((head + 1) * each - n, GENSERVE_CALL)
#undef GENSERVE_CALL
        }
    for (int n = 0; n < queries.count; ++n) store(scores + static_cast<size_t>(n) * SPLIT + key, join_runs(runs[n]));
  }
  ask_first(values, run, num_heads);
  for (int n = 0; n < queries.count; ++n)
    partials[n] = soften(scores + static_cast<size_t>(n) * SPLIT, queries.first[n], queries.last[n]);
  for (size_t i = 0; i < static_cast<size_t>(queries.count) * size; i += LANES) store(out + i, zero());
  for (int key = run.first; key < run.last; key += TOGETHER) {
    const Run some{key, key + TOGETHER < run.last ? key + TOGETHER : run.last};
    for (int head = 0; head < num_heads; ++head)
      for (int n = head * each; n < (head + 1) * each; n += 4) {
        const float* s = scores + static_cast<size_t>(n) * SPLIT;
        float* o = out + static_cast<size_t>(n) * size;
#define GENSERVE_CALL(N) add_values_of<N>(queries, n, s, values, head, some, size, o)
        GENSERVE_UP_TO_FOUR((head + 1) * each - n, GENSERVE_CALL)
#undef GENSERVE_CALL
      }
  }
}

template <class Vectors>
INLINE void widen(Vectors from, Run run, auto size, float* out) {
  for (int key = run.first; key < run.last; ++key) {
    from.ask(key + AHEAD, 0);
    const auto each = from(key, 0);
    for (int i = 0; i < size; i += LANES) store(out + static_cast<size_t>(key) * size + i, each.at(i));
  }
}

template <Format FORMAT, int SIZE>
void attend_in(
    const Queries& queries, const Cache& cache, int head, int num_heads, const int32_t* slots, float* scores,
    float* spare, Partial* partials, float* out) {
  using Type = typename Element<FORMAT>::Type;
  const HeadSize<SIZE> exact{cache.head_dim}, size = padded(exact);
  const Cached<FORMAT, SIZE> keys{
      reinterpret_cast<const Type*>(cache.keys), cache.key_scales, slots, cache.heads, head, exact};
  const Cached<FORMAT, SIZE> values{
      reinterpret_cast<const Type*>(cache.values), cache.value_scales, slots, cache.heads, head, exact};
  if (num_heads > 1 || queries.count <= 4)  // few rows: not worth floats in memory
    return attend_with(queries, keys, values, num_heads, size, scores, partials, out);
  float* wide_values = spare + static_cast<size_t>(SPLIT) * size;
  widen(keys, span(queries), size, spare);
  widen(values, span(queries), size, wide_values);
  attend_with(
      queries, Widened<SIZE>{spare, size}, Widened<SIZE>{wide_values, size}, 1, size, scores, partials, out);
}

template <Format FORMAT>
void attend_as(
    const Queries& queries, const Cache& cache, int head, int num_heads, const int32_t* slots, float* scores,
    float* spare, Partial* partials, float* out) {
  const auto run = cache.head_dim == 64    ? attend_in<FORMAT, 64>
                   : cache.head_dim == 128 ? attend_in<FORMAT, 128>
                                           : attend_in<FORMAT, 0>;
  run(queries, cache, head, num_heads, slots, scores, spare, partials, out);
}

void attend(
    const Queries& queries, const Cache& cache, int head, int num_heads, const int32_t* slots, float* scores,
    float* spare, Partial* partials, float* out) {
  const auto run = cache.format == Format::float16 ? attend_as<Format::float16>
                   : cache.format == Format::int8  ? attend_as<Format::int8>
                                                   : attend_as<Format::float32>;
  run(queries, cache, head, num_heads, slots, scores, spare, partials, out);
}

// Two partials of one query as one; the order of joining is the order of splits.
void join(Partial& into, float* out, const Partial& other, const float* other_out, int size) {
  if (other.sum == 0.0f) return;
  if (into.sum == 0.0f) {
    into = other;
    __builtin_memcpy(out, other_out, static_cast<size_t>(size) * sizeof(float));
    return;
  }
  const float largest = into.largest > other.largest ? into.largest : other.largest;
  alignas(64) float shrink[LANES];
  Vec a = exp(broadcast(into.largest - largest)), b = exp(broadcast(other.largest - largest));
  store(shrink, a);
  const float shrink_a = shrink[0];
  store(shrink, b);
  into = {largest, into.sum * shrink_a + other.sum * shrink[0]};
  for (int i = 0; i < size; i += LANES)
    store(out + i, fma(load(other_out + i), b, mul(load(out + i), a)));
}

}  // namespace genserve::ISA

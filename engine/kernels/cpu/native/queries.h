// The innermost loops of attention: queries of one key head with its keys, and with its values.
//
// A key or a value is read once for all queries that go together, and meanwhile what is read later is asked for.
#pragma once
#include "cached.h"
#include "kernels.h"

namespace genserve::ISA {

// Products of N queries with four keys, summed over runs of four lanes.
template <int N, class Keys>
INLINE void score_four(const float* const* q, const Keys& keys, int head, int key, auto size, Vec* runs) {
  const decltype(keys(key, head)) each[4] = {
      keys(key, head), keys(key + 1, head), keys(key + 2, head), keys(key + 3, head)};
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
  for (int n = 0; n < N; ++n) runs[n] = sum_runs(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
}

// out[n] = products of query n with keys [key, key + LANES)
template <int N, class Keys>
__attribute__((noinline)) void score(
    const float* const* q, const Keys& keys, Asking& asking, int head, int key, auto size, Vec* out) {
  Asking later = asking;
  Vec runs[LANES / 4][N];
#pragma GCC unroll 4
  for (int part = 0; part < LANES / 4; ++part) {
    if constexpr (!Keys::IS_NEAR)
      for (int j = 0; j < 4; ++j) later.next(keys.bytes());
    score_four<N>(q, keys, head, key + 4 * part, size, runs[part]);
  }
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    Vec own[LANES / 4];
    for (int part = 0; part < LANES / 4; ++part) own[part] = runs[part][n];
    out[n] = join_runs(own);
  }
  asking = later;
}

// out[n] += weights[n][key] * value of keys [first, last), N queries, V vectors of dimensions from `i` on.
template <int N, int V, class Values>
INLINE void add_values(
    const float* weights, const Values& values, Asking& asking, int head, int first, int last, int i, int stride,
    float* out) {
  Vec sums[N][V];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sums[n][v] = load(out + static_cast<size_t>(n) * stride + i + v * LANES);
  Asking later = asking;
  for (int key = first; key < last; ++key) {
    const auto value = values(key, head);
    if constexpr (!Values::IS_NEAR)
      if (i == 0) later.next(values.bytes());
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
  asking = later;
}

template <int N, class Values>
__attribute__((noinline)) void add_values(
    const float* weights, const Values& values, Asking& asking, int head, int first, int last, auto size,
    float* out) {
  if (first >= last) return;
  int i = 0;
  constexpr int V = N * 4 + N < REGISTERS ? 4 : 2;  // vectors of sums that fit into the registers
  for (; i + V * LANES <= size; i += V * LANES)
    add_values<N, V>(weights, values, asking, head, first, last, i, size, out);
  for (; i < size; i += LANES) add_values<N, 1>(weights, values, asking, head, first, last, i, size, out);
}

// The keys of [first, last) that query n sees.
struct Run {
  int first, last;
  int end() const { return (last + LANES - 1) / LANES * LANES; }  // of whole vectors
  Run part(int key, int size) const { return {key, key + size < last ? key + size : last}; }
};
INLINE Run seen(const Queries& queries, int n, int first, int last) {
  return {queries.first[n] > first ? queries.first[n] : first, queries.last[n] < last ? queries.last[n] : last};
}

// Each query sees its own run of keys: what all N see goes together, the rest one by one, always in order.
template <int N, class Values>
__attribute__((noinline)) void add_values_of(
    const Queries& queries, int n0, const float* weights, const Values& values, Asking& asking, int head,
    Run run, auto size, float* out) {
  Run joint = run;
  for (int n = n0; n < n0 + N; ++n) joint = seen(queries, n, joint.first, joint.last);
  const bool is_joint = joint.first < joint.last;
  const auto add_alone = [&](int n, int first, int last) ALWAYS_INLINE {
    add_values<1>(weights + n * SPLIT, values, asking, head, first, last, size, out + static_cast<size_t>(n) * size);
  };
  for (int n = 0; n < N; ++n) {
    const Run own = seen(queries, n0 + n, run.first, run.last);
    add_alone(n, own.first, is_joint ? joint.first : own.last);
  }
  if (!is_joint) return;
  add_values<N>(weights, values, asking, head, joint.first, joint.last, size, out);
  for (int n = 0; n < N; ++n) add_alone(n, joint.last, seen(queries, n0 + n, run.first, run.last).last);
}

}  // namespace genserve::ISA

// Attention of new tokens of several rows to what a cache holds, in single precision; see kernel.py.
//
// A tile of keys is turned once for all queries that share it, so that products need no sums across lanes. Softmax is
// kept up to date from tile to tile (2205.14135, algorithm 1), so that keys and values are read once.

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

using Vec = at::vec::Vectorized<float>;

constexpr int SIZE = HEAD_SIZE;
constexpr int LANES = Vec::size();
constexpr int FULL = SIZE / LANES;               // vectors of a head that are full
constexpr int REST = SIZE % LANES;               // numbers of the last one, where it is not
constexpr int PARTS = FULL + (REST ? 1 : 0);     // vectors of a head
constexpr int TILE = 64;                         // keys, a multiple of what `products` takes at once
constexpr int MOST = 64;                         // queries that share a turned tile
constexpr int WIDE = LANES == 8 ? 2 : 4;         // vectors of keys at once: as many as registers hold
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// The new tokens of one row.
struct Span {
  int64_t row, first, count, length;  // row of the cache, first of the tokens, how many, and cached ones before them
  const float* mask;                  // [count, length + count], added; null: each sees itself and all before it
};

// What a query has found so far.
struct Mixed {
  float highest, total;
  float sums[PARTS * LANES];
};

struct Query {
  float numbers[SIZE];
  const float* mask;
  int64_t end;  // slots that it sees at most
};

inline Vec part_of(const float* from, int part) {
  return part < FULL ? Vec::loadu(from + part * LANES) : Vec::loadu(from + part * LANES, REST);
}

inline float highest_of(Vec numbers) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, numbers);
}

inline float sum_of(Vec numbers) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, numbers);
}

// keys [count, SIZE] -> turned [SIZE, TILE], zeros behind.
void turn(const float* keys, int count, float* turned) {
  for (int key = 0; key < TILE; key += LANES) {
    const int full = key + LANES <= count ? FULL : 0;
    for (int part = 0; part < full; ++part) {
      at::vec::transpose_mxn<float, LANES, LANES>(
          keys + key * SIZE + part * LANES, SIZE, turned + part * LANES * TILE + key, TILE);
    }
    for (int one = key; one < key + LANES; ++one) {
      for (int at = full * LANES; at < SIZE; ++at) {
        turned[at * TILE + one] = one < count ? keys[one * SIZE + at] : 0.f;
      }
    }
  }
}

// scores [N, TILE] = queries [N, SIZE] x turned [SIZE, TILE]
template <int N>
inline void products(const Query* queries, const float* turned, float (*scores)[TILE]) {
  for (int key = 0; key < TILE; key += WIDE * LANES) {
    Vec sums[N][WIDE];
    for (int q = 0; q < N; ++q) {
      for (int w = 0; w < WIDE; ++w) sums[q][w] = Vec(0.f);
    }
    for (int at = 0; at < SIZE; ++at) {
      Vec keys[WIDE];
      for (int w = 0; w < WIDE; ++w) keys[w] = Vec::loadu(turned + at * TILE + key + w * LANES);
      for (int q = 0; q < N; ++q) {
        const Vec number(queries[q].numbers[at]);
        for (int w = 0; w < WIDE; ++w) sums[q][w] = at::vec::fmadd(number, keys[w], sums[q][w]);
      }
    }
    for (int q = 0; q < N; ++q) {
      for (int w = 0; w < WIDE; ++w) sums[q][w].store(scores[q] + key + w * LANES);
    }
  }
}

// Makes shares of the scores of one tile, and brings what was found before to the same highest score.
inline void to_shares(float* scores, int64_t seen, const float* mask, Mixed& mixed) {
  for (int64_t key = 0; mask && key < seen; ++key) scores[key] += mask[key];
  for (int64_t key = std::max<int64_t>(seen, 0); key < TILE; ++key) scores[key] = NEVER;
  Vec highs = Vec::loadu(scores);
  for (int key = LANES; key < TILE; key += LANES) highs = at::vec::maximum(highs, Vec::loadu(scores + key));
  const float own = highest_of(highs);
  if (!(own < -NEVER)) {  // what is no finite number makes none, as in torch's own attention
    mixed.total = std::numeric_limits<float>::quiet_NaN();
    mixed.highest = std::max(mixed.highest, 0.f);
    std::memset(scores, 0, TILE * sizeof(float));
    return;
  }
  const float highest = std::max(mixed.highest, own);
  if (highest == NEVER) {  // it sees nothing of this tile nor of those before
    std::memset(scores, 0, TILE * sizeof(float));
    return;
  }
  const float kept = highest == mixed.highest ? 1.f : std::exp(mixed.highest - highest);
  Vec sums(0.f);
  for (int key = 0; key < TILE; key += LANES) {
    const Vec shares = (Vec::loadu(scores + key) - Vec(highest)).exp_u20();
    shares.store(scores + key);
    sums = sums + shares;
  }
  mixed.total = mixed.total * kept + sum_of(sums);
  mixed.highest = highest;
  if (kept != 1.f) {
    for (float& sum : mixed.sums) sum *= kept;
  }
}

// Adds shares [N, count] x values [count, SIZE].
template <int N>
inline void add_values(const float (*shares)[TILE], const float* values, int count, Mixed* mixed) {
  constexpr int CHAINS = 4 / N;  // sums that do not wait for each other
  Vec sums[N][CHAINS][PARTS];
  for (int q = 0; q < N; ++q) {
    for (int part = 0; part < PARTS; ++part) {
      sums[q][0][part] = Vec::loadu(mixed[q].sums + part * LANES);
      for (int chain = 1; chain < CHAINS; ++chain) sums[q][chain][part] = Vec(0.f);
    }
  }
  const auto add = [&](int key, int chain) {
    for (int part = 0; part < PARTS; ++part) {
      const Vec value = part_of(values + key * SIZE, part);
      for (int q = 0; q < N; ++q) {
        sums[q][chain][part] = at::vec::fmadd(Vec(shares[q][key]), value, sums[q][chain][part]);
      }
    }
  };
  int key = 0;
  for (; key + CHAINS <= count; key += CHAINS) {
    for (int chain = 0; chain < CHAINS; ++chain) add(key + chain, chain);
  }
  for (; key < count; ++key) add(key, 0);
  for (int q = 0; q < N; ++q) {
    for (int part = 0; part < PARTS; ++part) {
      Vec sum = sums[q][0][part];
      for (int chain = 1; chain < CHAINS; ++chain) sum = sum + sums[q][chain][part];
      sum.store(mixed[q].sums + part * LANES);
    }
  }
}

template <int N>
inline void mix_tile(
    const Query* queries, const float* turned, const float* values, int64_t start, int count, Mixed* mixed) {
  alignas(64) float scores[N][TILE];
  products<N>(queries, turned, scores);
  for (int q = 0; q < N; ++q) {
    const int64_t seen = std::min<int64_t>(count, queries[q].end - start);
    to_shares(scores[q], seen, queries[q].mask ? queries[q].mask + start : nullptr, mixed[q]);
  }
  add_values<N>(scores, values, count, mixed);
}

// Lets at most MOST queries look at keys and values [end, SIZE].
void mix(const Query* queries, int64_t number, const float* keys, const float* values, int64_t end, Mixed* mixed) {
  alignas(64) float turned[SIZE * TILE];
  for (int64_t start = 0; start < end; start += TILE) {
    const int count = static_cast<int>(std::min<int64_t>(TILE, end - start));
    turn(keys + start * SIZE, count, turned);
    const float* own = values + start * SIZE;
    int64_t q = 0;
    for (; q + 4 <= number; q += 4) mix_tile<4>(queries + q, turned, own, start, count, mixed + q);
    if (q + 2 <= number) {
      mix_tile<2>(queries + q, turned, own, start, count, mixed + q);
      q += 2;
    }
    if (q < number) mix_tile<1>(queries + q, turned, own, start, count, mixed + q);
  }
}

// What of a layer all its tasks share; see `attend`.
struct Layer {
  int64_t num_queries, num_keys, capacity;
  float scale;
  const float* queries;
  int64_t query_step;
  const float* keys;
  int64_t key_step;
  const float* values;
  int64_t value_step;
  float* cached_keys;
  float* cached_values;
  float* out;

  int64_t shared() const { return num_queries / num_keys; }
  int64_t place_of(const Span& span, int64_t head) const { return (span.row * num_keys + head) * capacity * SIZE; }
};

// Writes the keys and values of one head of a span's tokens behind those cached.
void append(const Layer& layer, const Span& span, int64_t head) {
  for (int64_t token = 0; token < span.count; ++token) {
    const int64_t from = span.first + token, to = layer.place_of(span, head) + (span.length + token) * SIZE;
    std::memcpy(layer.cached_keys + to, layer.keys + from * layer.key_step + head * SIZE, SIZE * sizeof(float));
    std::memcpy(layer.cached_values + to, layer.values + from * layer.value_step + head * SIZE, SIZE * sizeof(float));
  }
}

// Mixes what at most MOST queries see, those of a span that share a head of keys, from one of them on.
void attend_some(const Layer& layer, const Span& span, int64_t head, int64_t start) {
  const int64_t shared = layer.shared(), end = span.length + span.count;
  const int64_t number = std::min<int64_t>(MOST, span.count * shared - start);
  Query asked[MOST];
  Mixed mixed[MOST];
  for (int64_t q = 0; q < number; ++q) {
    const int64_t token = (start + q) / shared, which = head * shared + (start + q) % shared;
    const float* query = layer.queries + (span.first + token) * layer.query_step + which * SIZE;
    for (int at = 0; at < SIZE; ++at) asked[q].numbers[at] = query[at] * layer.scale;
    asked[q].mask = span.mask ? span.mask + token * end : nullptr;
    asked[q].end = span.mask ? end : span.length + token + 1;
    mixed[q] = Mixed{NEVER, 0.f, {}};
  }
  const int64_t place = layer.place_of(span, head);
  mix(asked, number, layer.cached_keys + place, layer.cached_values + place, asked[number - 1].end, mixed);
  for (int64_t q = 0; q < number; ++q) {
    const int64_t token = (start + q) / shared, which = head * shared + (start + q) % shared;
    float* found = layer.out + ((span.first + token) * layer.num_queries + which) * SIZE;
    for (int at = 0; at < SIZE; ++at) found[at] = mixed[q].sums[at] / mixed[q].total;
  }
}

}  // namespace

// Writes the keys and values of the tokens of every span behind those cached, and mixes what each of them sees.
//
// queries [tokens, num_queries, SIZE], keys and values [tokens, num_keys, SIZE], of which only tokens lie apart, by so
// many numbers; cached [rows, num_keys, capacity, SIZE]; out [tokens, num_queries, SIZE].
extern "C" void attend(
    const Span* spans, int64_t num_spans, int64_t num_queries, int64_t num_keys, int64_t capacity, float scale,
    int64_t num_threads, const float* queries, int64_t query_step, const float* keys, int64_t key_step,
    const float* values, int64_t value_step, float* cached_keys, float* cached_values, float* out) {
  const Layer layer{num_queries, num_keys, capacity, scale, queries, query_step, keys, key_step,
                    values, value_step, cached_keys, cached_values, out};
  int64_t most = 0;
  for (int64_t place = 0; place < num_spans; ++place) most = std::max(most, spans[place].count * layer.shared());
#pragma omp parallel num_threads(num_threads)
  {
#pragma omp for collapse(2)
    for (int64_t place = 0; place < num_spans; ++place) {
      for (int64_t head = 0; head < num_keys; ++head) append(layer, spans[place], head);
    }
#pragma omp for collapse(3) schedule(dynamic, 1)
    for (int64_t place = 0; place < num_spans; ++place) {
      for (int64_t head = 0; head < num_keys; ++head) {
        for (int64_t start = 0; start < most; start += MOST) {
          if (start < spans[place].count * layer.shared()) attend_some(layer, spans[place], head, start);
        }
      }
    }
  }
}

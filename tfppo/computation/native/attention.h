/* Causal attention over whole rows, head by head, and its gradient: products of tiles of queries with all keys. */
#ifndef TFPPO_ATTENTION_H
#define TFPPO_ATTENTION_H

#include "trunk.h"

/* One head's arrays while its attention is computed, for rows of up to n tokens. */
struct Head {
  uint32_t *keys_turned, *values_turned, *keys, *values, *queries, *upstream;
  float *scores, *slopes;
  bf16 *turned;
  bf16 *weights, *weight_slopes; /* of every query, for the gradient; else of a tile of them */
};

/* The size of a panel that pack_transposed fills, of vectors of d numbers. */
static size_t turned_panel_size(int d) { return panel_size((pairs_of(d) + LANES - 1) / LANES * LANES); }

static Head head_in(Room &room, int n, int d, bool with_gradient) {
  const size_t turned = panels_of(n) * turned_panel_size(d), weights = (with_gradient ? n : TILE) * padded(n);
  const size_t packed = panels_of(d) * panel_size(pairs_of(n));
  Head head = {};
  head.keys_turned = room.take<uint32_t>(turned), head.values = room.take<uint32_t>(packed);
  head.scores = room.take<float>(TILE * padded(n)), head.weights = room.take<bf16>(weights);
  if (!with_gradient) return head;
  head.values_turned = room.take<uint32_t>(turned), head.keys = room.take<uint32_t>(packed);
  head.queries = room.take<uint32_t>(packed), head.upstream = room.take<uint32_t>(packed);
  head.turned = room.take<bf16>((TILE + LANES) * padded(n));
  head.slopes = room.take<float>(TILE * padded(n)), head.weight_slopes = room.take<bf16>(weights);
  return head;
}

static void pack_panels(const bf16 *from, size_t ld, int rows, int columns, uint32_t *to) {
  for (int j = 0; j < columns; j += PANEL)
    pack_rows(from + j, ld, rows, minimum(PANEL, columns - j), to + (size_t)j * pairs_of(rows));
}

static void pack_turned_panels(const bf16 *from, size_t ld, int rows, int columns, uint32_t *to) {
  for (int r = 0; r < rows; r += PANEL)
    pack_transposed(from + r * ld, ld, minimum(PANEL, rows - r), columns, to + r / PANEL * turned_panel_size(columns));
}

/* to[0:rows, 0:n] = a @ transpose(b), of a tile of rows of width d, and b in turned panels. */
static void tile_of_scores(Left a, int rows, const uint32_t *turned, int n, int d, float *to, size_t ld) {
  for (int j = 0; j < n; j += PANEL)
    multiply_rows(a, 0, rows, turned + j / PANEL * turned_panel_size(d), pairs_of(d),
                  [&](int r, vec low, vec high) { store_panel(to + r * ld + j, low, high); });
}

/* Softmax over the first `seen` of n scores, which it replaces, and the same as bfloat16 weights; 0 beyond them.

   Not divided by the sum, which it returns, where `divide` is false. */
static float soften(float *scores, int seen, int n, float scale, bool divide, bf16 *weights) {
  vec highest = (vec){} - INFINITY, sum = {};
  for (int j = 0; j < n; j += LANES) {
    const __m512 x = (__m512)(load(scores + j) * scale);
    store(scores + j, (vec)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), first_lanes(seen - j), x));
    highest = load(scores + j) > highest ? load(scores + j) : highest;
  }
  const float largest = _mm512_reduce_max_ps((__m512)highest);
  for (int j = 0; j < n; j += LANES) {
    const __m512 weight = (__m512)exp_of(load(scores + j) - largest);
    store(scores + j, (vec)_mm512_maskz_mov_ps(first_lanes(seen - j), weight));
    sum += load(scores + j);
  }
  const float total = sum_of(sum), factor = divide ? 1.0f / total : 1.0f;
  for (int j = 0; j < n; j += LANES) {
    store(scores + j, load(scores + j) * factor);
    store_rounded(weights + j, load(scores + j));
  }
  return total;
}

/* A row's tokens, and those of them that are a block's queries, which come `before` tokens later. */
struct Span {
  int first, count, first_query, queries, before;
};

static Span span_of(const Trunk &t, int row, bool is_last) {
  const std::vector<int> &tokens = t.tokens.first_token, &queries = is_last ? t.tokens.first_query : tokens;
  const int count = tokens[row + 1] - tokens[row], asking = queries[row + 1] - queries[row];
  return {tokens[row], count, queries[row], asking, count - asking};
}

/* What lambdas take of a span they name once more: clang knows no other way before version 16.

   One head of one row: context[queries] = softmax(queries . keys / sqrt(d)) @ values over what came before. */
static void attend_forward(const Trunk &t, int row, int head, const Kept &kept, bool is_last, const Head &h) {
  const auto [first, n, first_query, queries, before] = span_of(t, row, is_last);
  const int d = t.head_width();
  const size_t ld = padded(3 * t.width), ldn = padded(n);
  const bf16 *q = kept.qkv + first * ld + head * d;
  pack_turned_panels(q + t.width, ld, n, d, h.keys_turned);
  pack_panels(q + 2 * t.width, ld, n, d, h.values);
  if (head == 0)
    for (int i = 0; i < queries; i++) clear_end(kept.context + (first_query + i) * padded(t.width), t.width);
  for (int i = 0; i < queries; i += TILE) {
    const int here = minimum(TILE, queries - i), seen = before + i + here;
    tile_of_scores(by_rows(q + (before + i) * ld, ld), here, h.keys_turned, seen, d, h.scores, ldn);
    float sums[TILE];
    const int whole = panels_of(seen) * PANEL;
    for (int r = 0; r < here; r++)
      sums[r] = soften(h.scores + r * ldn, before + i + r + 1, whole, 1.0f / sqrtf(d), false, h.weights + r * ldn);
    for (int j = 0; j < d; j += PANEL)
      multiply_rows(by_rows(h.weights, ldn), 0, here, h.values + (size_t)j * pairs_of(n), pairs_of(seen),
                    [&, first_query = first_query](int r, vec low, vec high) {
                      bf16 *to = kept.context + (first_query + i + r) * padded(t.width) + head * d + j;
                      store_panel(to, low / sums[r], high / sums[r], d - j);
                    });
  }
}

/* The gradients of the queries, keys and values of one head of one row, from that of its context. */
static void attend_back(const Trunk &t, int row, int head, const Kept &kept, bool is_last, const bf16 *dcontext,
                        bf16 *dqkv, const Head &h) {
  const auto [first, n, first_query, queries, before] = span_of(t, row, is_last);
  const int d = t.head_width();
  const size_t ld = padded(3 * t.width), ldn = padded(n), ldc = padded(t.width);
  const float scale = 1.0f / sqrtf(d);
  const bf16 *q = kept.qkv + first * ld + head * d, *dc = dcontext + first_query * ldc + head * d;
  bf16 *dq = dqkv + first * ld + head * d;
  pack_turned_panels(q + t.width, ld, n, d, h.keys_turned);
  pack_turned_panels(q + 2 * t.width, ld, n, d, h.values_turned);
  pack_panels(q + t.width, ld, n, d, h.keys);
  pack_panels(q + before * ld, ld, queries, d, h.queries);
  pack_panels(dc, ldc, queries, d, h.upstream);
  for (int i = 0; i < before; i++) memset(dq + i * ld, 0, d * sizeof(bf16));
  memset(h.weights, 0, queries * ldn * sizeof(bf16));
  memset(h.weight_slopes, 0, queries * ldn * sizeof(bf16));
  for (int i = 0; i < queries; i += TILE) {
    const int here = minimum(TILE, queries - i), seen = before + i + here, whole = panels_of(seen) * PANEL;
    tile_of_scores(by_rows(q + (before + i) * ld, ld), here, h.keys_turned, seen, d, h.scores, ldn);
    tile_of_scores(by_rows(dc + i * ldc, ldc), here, h.values_turned, seen, d, h.slopes, ldn);
    for (int r = 0; r < here; r++) {
      float *weights = h.scores + r * ldn, *slopes = h.slopes + r * ldn;
      soften(weights, before + i + r + 1, whole, scale, true, h.weights + (i + r) * ldn);
      vec sum = {};
      for (int j = 0; j < whole; j += LANES) sum += load(weights + j) * load(slopes + j);
      const float mean = sum_of(sum);
      for (int j = 0; j < whole; j += LANES)
        store_rounded(h.weight_slopes + (i + r) * ldn + j, load(weights + j) * (load(slopes + j) - mean) * scale);
    }
    for (int j = 0; j < d; j += PANEL)
      multiply_rows(by_rows(h.weight_slopes + i * ldn, ldn), 0, here, h.keys + (size_t)j * pairs_of(n), pairs_of(seen),
                    [&, before = before](int r, vec low, vec high) {
                      store_panel(dq + (before + i + r) * ld + j, low, high, d - j);
                    });
  }
  for (int part = 1; part <= 2; part++) { /* of the keys, then of the values */
    const bf16 *left = part == 1 ? h.weight_slopes : h.weights;
    const uint32_t *right = part == 1 ? h.queries : h.upstream;
    const int pairs = pairs_of(queries);
    for (int k = 0; k < n; k += TILE) {
      const int here = minimum(TILE, n - k),
                unseen = k > before ? (k - before) / 2 / PAIRS * PAIRS : 0; /* earlier pairs of queries */
      for (int i = 0; i < here; i += LANES)
        turn_columns(left + k + i + 2 * unseen * ldn, ldn, queries - 2 * unseen, here - i, h.turned + i * ldn, ldn);
      for (int j = 0; j < d; j += PANEL)
        multiply_rows(
            by_rows(h.turned, ldn), 0, here, right + (size_t)j * pairs + (size_t)unseen * PANEL, pairs - unseen,
            [&](int r, vec low, vec high) { store_panel(dq + part * t.width + (k + r) * ld + j, low, high, d - j); });
    }
  }
}

#endif

/* Arithmetic of the decoder: float32 only, on row-major arrays.

   A row's result does not depend on the other rows of the call, nor on the number of threads: every sum runs in one
   order. */
#ifndef TFPPO_KERNELS_H
#define TFPPO_KERNELS_H

#include "vectors.h"

constexpr int DEPTH = 8;    /* rows of a matrix that a pass over the sums takes together */
constexpr int ROWS = 64;    /* of states that are multiplied together */
constexpr int SUMS = 9216;  /* of a task, which stay in the cache of a core */
constexpr int TOKENS = 8;   /* of the output matrix whose vectors are multiplied together */
constexpr int BLOCK = 64;   /* tokens that are looked for together */
constexpr int WIDEST = 512; /* columns of a matrix that are read together */
constexpr int LINE = 16;    /* floats of a line of the cache, of which one is fetched at once */

typedef float vec8 __attribute__((vector_size(8 * sizeof(float))));

/* How far rows of n numbers lie apart: not by a power of 2, which would put them all in the same sets of a cache. */
INLINE int stride_of(int n) { return (n + LANES - 1) / LANES * LANES + LANES; }

/* How many of a matrix's n columns a task has: wide ones read memory in longer runs, and each thread needs as many. */
static int columns_of_task(int n, int rows, int threads) {
  int widest = minimum(WIDEST, SUMS / minimum(ROWS, rows) - LANES) / LANES * LANES;
  int tasks = (n + widest - 1) / widest;
  tasks = (tasks + threads - 1) / threads * threads;
  return ((n + tasks - 1) / tasks + LANES - 1) / LANES * LANES;
}

/* sums[r, 0:n] += x[r, 0:depth] @ w[0:depth, 0:n]: `depth` rows of w at a time, each of which is read once. */
INLINE void add_products(const float *x, int ldx, int rows, const float *w, int ldw, int n, int depth, float *sums,
                         int lds) {
  int j = 0;
  for (; j + LANES <= n; j += LANES) {
    vec column[DEPTH];
    for (int i = 0; i < depth; i++) column[i] = load(w + (size_t)i * ldw + j);
    if (j % LINE == 0)
      for (int i = 0; i < depth; i++) __builtin_prefetch(w + (size_t)(i + depth) * ldw + j);
    int r = 0;
    for (; r + 2 <= rows; r += 2) { /* two rows: their sums do not wait for each other */
      const float *x0 = x + (size_t)r * ldx, *x1 = x0 + ldx;
      float *to0 = sums + (size_t)r * lds + j, *to1 = to0 + lds;
      vec sum0 = load(to0), sum1 = load(to1);
      for (int i = 0; i < depth; i++) {
        sum0 += column[i] * x0[i];
        sum1 += column[i] * x1[i];
      }
      store(to0, sum0);
      store(to1, sum1);
    }
    for (; r < rows; r++) {
      float *to = sums + (size_t)r * lds + j;
      vec sum = load(to);
      for (int i = 0; i < depth; i++) sum += column[i] * x[(size_t)r * ldx + i];
      store(to, sum);
    }
  }
  for (; j < n; j++)
    for (int r = 0; r < rows; r++) {
      float *to = sums + (size_t)r * lds + j;
      for (int i = 0; i < depth; i++) *to = fmaf(w[(size_t)i * ldw + j], x[(size_t)r * ldx + i], *to);
    }
}

enum Ending { ASSIGN, ADD, GELU };

/* out[r, 0:n] = x[r, 0:k] @ w[0:k, 0:n] + bias, of rows stride_of(k) and stride_of(ldw) apart; added to what is there,
 * or through GELU; of up to WIDEST columns. */
static void project_columns(const float *x, int rows, int k, const float *w, int ldw, const float *bias, int n,
                            Ending ending, float *out) {
  float sums[SUMS];
  const int lds = stride_of(n), ldx = stride_of(k), ldo = stride_of(ldw);
  for (int first = 0; first < rows; first += ROWS) {
    int here = minimum(ROWS, rows - first), i = 0;
    const float *xs = x + (size_t)first * ldx;
    for (int r = 0; r < here; r++) memcpy(sums + r * lds, bias, n * sizeof(float));
    for (; i + DEPTH <= k; i += DEPTH) add_products(xs + i, ldx, here, w + (size_t)i * ldw, ldw, n, DEPTH, sums, lds);
    for (; i < k; i++) add_products(xs + i, ldx, here, w + (size_t)i * ldw, ldw, n, 1, sums, lds);
    for (int r = 0; r < here; r++) {
      float *sum = sums + r * lds, *to = out + (size_t)(first + r) * ldo;
      int j = 0;
      if (ending == GELU) {
        vec *padded = (vec *)sum; /* what lies beyond n is never copied */
        for (; j * LANES < n; j++) padded[j] = gelu_of(padded[j]);
      }
      if (ending == ADD)
        for (j = 0; j < n; j++) to[j] += sum[j];
      else
        memcpy(to, sum, n * sizeof(float));
    }
  }
}

/* out[r, v] = x[r] . e[v] for TOKENS vectors e and up to as many rows as V has lanes: transposed is [d, lanes] of x.
 */
template <typename V>
INLINE void dot_products(const float *transposed, int rows, const float *e, int d, float *out, int ldo) {
  constexpr int lanes = sizeof(V) / sizeof(float);
  V sums[TOKENS] = {};
  for (int k = 0; k < d; k++) {
    V column;
    memcpy(&column, transposed + k * lanes, sizeof(V));
    for (int i = 0; i < TOKENS; i++) sums[i] += column * e[(size_t)i * d + k];
    if (k % LINE == 0)
      for (int i = 0; i < TOKENS; i++) __builtin_prefetch(e + (size_t)(i + TOKENS) * d + k);
  }
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < TOKENS; i++) out[(size_t)r * ldo + i] = sums[i][r];
}

/* The room that `dots` wants, in floats. */
INLINE size_t size_of_dots(int d) { return size_t(TOKENS) * d + TOKENS * LANES; }

/* out[r, 0:n] = x[r, 0:d] . e[0:n, 0:d] for such a group of rows. `room` is a thread's own. */
template <typename V>
static void dots(const float *transposed, int rows, const float *e, int n, int d, float *room, float *out, int ldo) {
  int v = 0;
  for (; v + TOKENS <= n; v += TOKENS) dot_products<V>(transposed, rows, e + (size_t)v * d, d, out + v, ldo);
  if (v == n) return;
  float *last = room, *outs = room + size_t(TOKENS) * d; /* the same steps for the last few, so the same rounding */
  const size_t given = size_t(n - v) * d;
  memcpy(last, e + (size_t)v * d, given * sizeof(float));
  memset(last + given, 0, (size_t(TOKENS) * d - given) * sizeof(float));
  dot_products<V>(transposed, rows, last, d, outs, TOKENS);
  for (int r = 0; r < rows; r++) memcpy(out + (size_t)r * ldo + v, &outs[r * TOKENS], (n - v) * sizeof(float));
}

/* One head of one query: context[0:d] = softmax(query . keys) @ values over the slots that may be seen.

   scores has room for `slots` and LANES more. Where no slot may be seen, which a prompt's padding alone comes to, 0. */
static void attend(const float *query, const float *keys, const float *values, const bool *seen, int slots, int d,
                   float *scores, float *context) {
  for (int first = 0; first < slots; first += LANES) {
    vec sums[LANES] = {};
    const int here = minimum(LANES, slots - first), whole = d / LANES * LANES;
    for (int s = 0; s < here; s++)
      for (int i = 0; i < whole; i += LANES) sums[s] += load(query + i) * load(keys + (size_t)(first + s) * d + i);
    vec total = sums_of(sums);
    for (int s = 0; s < here; s++)
      for (int i = whole; i < d; i++) total[s] += query[i] * keys[(size_t)(first + s) * d + i];
    store(scores + first, total);
  }
  float largest = -INFINITY, sum = 0;
  for (int s = 0; s < slots; s++)
    if (seen[s] && scores[s] > largest) largest = scores[s];
  for (int s = 0; s < slots; s += LANES) store(scores + s, exp_of(load(scores + s) - largest));
  for (int s = 0; s < slots; s++) sum += scores[s] = seen[s] ? scores[s] : 0.0f;
  const float scale = sum > 0 ? 1.0f / sum : 0.0f;
  int i = 0;
  for (; i + 4 * LANES <= d; i += 4 * LANES) {
    vec totals[4] = {};
    for (int s = 0; s < slots; s++)
      for (int j = 0; j < 4; j++) totals[j] += scores[s] * load(values + (size_t)s * d + i + j * LANES);
    for (int j = 0; j < 4; j++) store(context + i + j * LANES, totals[j] * scale);
  }
  for (; i + LANES <= d; i += LANES) {
    vec total = {};
    for (int s = 0; s < slots; s++) total += scores[s] * load(values + (size_t)s * d + i);
    store(context + i, total * scale);
  }
  for (; i < d; i++) {
    float total = 0;
    for (int s = 0; s < slots; s++) total += scores[s] * values[(size_t)s * d + i];
    context[i] = total * scale;
  }
}

/* The first of n numbers whose running sum exceeds target, or the last; *before is the sum of those before it. */
static int first_above(const float *numbers, int n, float target, float *before) {
  float sum = 0;
  int i = 0;
  for (; i < n - 1 && sum + numbers[i] <= target; i++) sum += numbers[i];
  *before = sum;
  return i;
}

static int largest_of(const float *numbers, int n) {
  int largest = 0;
  for (int i = 1; i < n; i++)
    if (numbers[i] > numbers[largest]) largest = i;
  return largest;
}

/* The token at which the cumulative softmax of n logits exceeds u, and its log-probability: as inverse_cdf_sample in
   tfppo/ppo/sampling.py, first among blocks of 64 tokens, then in the block. weights has room for n and BLOCK more,
   sums for the blocks. */
static int draw(const float *logits, int n, float scale, float u, float *weights, float *sums, float *logprob) {
  const int blocks = (n + BLOCK - 1) / BLOCK, padded = blocks * BLOCK;
  vec highest = (vec){} - INFINITY;
  memcpy(weights, logits, n * sizeof(float));
  for (int i = n; i < padded; i++) weights[i] = -INFINITY;
  for (int i = 0; i < padded; i += LANES) {
    vec x = load(weights + i) * scale;
    store(weights + i, x);
    highest = x > highest ? x : highest;
  }
  float largest = highest[0], total = 0, before, before_block;
  for (int i = 1; i < LANES; i++) largest = highest[i] > largest ? highest[i] : largest;
  for (int b = 0; b < blocks; b++) {
    vec sum = {};
    for (int i = b * BLOCK; i < (b + 1) * BLOCK; i += LANES) {
      vec x = load(weights + i) - largest;
      vec weight = x < -87.0f ? (vec){} : exp_of(x); /* as much as float32 can tell: nothing */
      store(weights + i, weight);
      sum += weight;
    }
    total += sums[b] = sum_of(sum);
  }
  const float target = u * total;
  const int block = first_above(sums, blocks, target, &before_block);
  int token = block * BLOCK + first_above(weights + block * BLOCK, BLOCK, target - before_block, &before);
  if (!(weights[token] > 0)) { /* rounding pointed at a token of no probability: the likeliest block's likeliest one */
    const int likeliest = largest_of(sums, blocks) * BLOCK;
    token = likeliest + largest_of(weights + likeliest, BLOCK);
  }
  *logprob = logits[token] * scale - largest - logf(total);
  return token;
}

#endif

/* Products with weights as they lie, and the gradients of products, norms and the activation. */
#ifndef TFPPO_GRADIENTS_H
#define TFPPO_GRADIENTS_H

#include "rounded.h"
#include "trunk.h"

constexpr int CHUNK = 32; /* rows whose part of a norm's gradient is summed together, so that threads don't matter */

/* `project_panels` by w as it lies, whose panels are packed as they are needed. */
template <typename Ending>
static void project(const bf16 *x, int rows, int k, const float *w, const float *bias, int n, uint32_t *panel,
                    Ending ending) {
  const auto packed = [&](int j) {
    pack_rows(w + j, n, k, n - j, panel);
    return panel;
  };
  project_panels(x, rows, k, bias, n, packed, ending);
}

/* ending(row, column, low, high) of dy @ transpose(w): dy [rows, n] and w [k, n]. The threads do not wait at its end.
 */
template <typename Ending>
static void project_back(const bf16 *dy, int rows, int n, const float *w, int k, uint32_t *panel, Ending ending) {
  const Tasks tasks(rows, k);
#pragma omp for schedule(dynamic, 1) nowait
  for (int task = 0; task < tasks.count(); task++) {
    const int j = tasks.panel(task);
    pack_transposed(w + (size_t)j * n, n, minimum(PANEL, k - j), n, panel);
    multiply_rows(by_rows(dy, padded(n)), tasks.first(task), tasks.end(task), panel, pairs_of(n),
                  [&](int r, vec low, vec high) { ending(r, j, low, high); });
  }
}

/* The transpose of x [rows, k] as the left matrix of `weight_gradients`. The threads do not wait at its end. */
static void turn(const bf16 *x, int rows, int k, bf16 *turned) {
#pragma omp for schedule(static) nowait
  for (int j = 0; j < k; j += LANES)
    turn_columns(x + j, padded(k), rows, k - j, turned + j * padded(rows), padded(rows));
}

/* The gradients transpose(x) @ dy and the columns' sums of dy [rows, n], of x turned. The threads do not wait. */
static void weight_gradients(const bf16 *turned, int rows, int k, const bf16 *dy, int n, uint32_t *panel, bf16 *dw,
                             float *dbias) {
  const Tasks tasks(k, n);
#pragma omp for schedule(dynamic, 1) nowait
  for (int task = 0; task < tasks.count(); task++) {
    const int j = tasks.panel(task);
    pack_rows(dy + j, padded(n), rows, n - j, panel);
    if (tasks.first(task) == 0) {
      vec low = {}, high = {};
      for (int r = 0; r < rows; r++) {
        low += load_widened(dy + r * padded(n) + j);
        high += load_widened(dy + r * padded(n) + j + LANES);
      }
      store_panel(dbias + j, low, high, n - j);
    }
    multiply_rows(by_rows(turned, padded(rows)), tasks.first(task), tasks.end(task), panel, pairs_of(rows),
                  [&](int i, vec low, vec high) { store_panel(dw + (size_t)i * n + j, low, high, n - j); });
  }
}

/* dx += the gradient through a layer norm of one row; adds to those of gamma and beta. */
static void norm_gradient(const float *x, const float *dy, const float *gamma, int d, float epsilon, float *dx,
                          float *dgamma, float *dbeta) {
  vec total = {}, squares = {}, mean_of_g = {}, mean_of_gx = {};
  for (int i = 0; i < d; i += LANES) total += load_some(x + i, d - i);
  const float mean = sum_of(total) / d;
  for (int i = 0; i < d; i += LANES) {
    const vec centred = (vec)_mm512_maskz_mov_ps(first_lanes(d - i), (__m512)(load_some(x + i, d - i) - mean));
    const vec g = load_some(dy + i, d - i) * load_some(gamma + i, d - i);
    squares += centred * centred, mean_of_g += g, mean_of_gx += g * centred;
  }
  const float scale = 1.0f / sqrtf(sum_of(squares) / d + epsilon);
  const float g_mean = sum_of(mean_of_g) / d, gx_mean = sum_of(mean_of_gx) * scale / d;
  for (int i = 0; i < d; i += LANES) {
    const vec upstream = load_some(dy + i, d - i), normed = (load_some(x + i, d - i) - mean) * scale;
    const vec gradient = (upstream * load_some(gamma + i, d - i) - g_mean - normed * gx_mean) * scale;
    store_some(dx + i, load_some(dx + i, d - i) + gradient, d - i);
    store_some(dgamma + i, load_some(dgamma + i, d - i) + upstream * normed, d - i);
    store_some(dbeta + i, load_some(dbeta + i, d - i) + upstream, d - i);
  }
}

/* Of every row; `parts` has room for the sums of each chunk. */
static void norm_gradients(const float *x, int rows, const float *dy, const float *gamma, const Trunk &t, float *dx,
                           float *parts, float *dgamma, float *dbeta) {
  const int chunks = (rows + CHUNK - 1) / CHUNK, d = t.width;
#pragma omp for schedule(static)
  for (int chunk = 0; chunk < chunks; chunk++) {
    float *sums = parts + (size_t)chunk * 2 * d;
    memset(sums, 0, 2 * d * sizeof(float));
    for (int r = chunk * CHUNK; r < minimum(rows, (chunk + 1) * CHUNK); r++)
      norm_gradient(x + r * padded(d), dy + r * padded(d), gamma, d, t.epsilon, dx + r * padded(d), sums, sums + d);
  }
#pragma omp for schedule(static)
  for (int i = 0; i < 2 * d; i++) {
    float sum = 0;
    for (int chunk = 0; chunk < chunks; chunk++) sum += parts[(size_t)chunk * 2 * d + i];
    (i < d ? dgamma[i] : dbeta[i - d]) = sum;
  }
}

/* GELU of x and its slope. In its tanh form it is x s(x), with s = 1 / (1 + exp(-2u)), u = c (x + 0.044715 x^3). */
INLINE void gelu_and_slope(vec x, vec *y, vec *slope) {
  const vec u = 0.7978845608f * (x + 0.044715f * x * x * x), s = 1.0f / (1.0f + exp_of(-2.0f * u));
  *y = x * s;
  *slope = s + *y * (1.0f - s) * (1.5957691216f * (1.0f + 0.134145f * x * x));
}

#endif

/* Rows of float32 numbers, rounded to bfloat16 for products, `padded` numbers apart. */
#ifndef TFPPO_ROUNDED_H
#define TFPPO_ROUNDED_H

#include <omp.h>

#include "products.h"

INLINE void round_row(const float *x, int n, bf16 *to) {
  for (int i = 0; i < n; i += PANEL)
    store_panel(to + i, load_some(x + i, n - i), load_some(x + i + LANES, n - i - LANES));
}

/* x [rows, d], whose rows are ld apart. For all threads of a region. */
[[maybe_unused]] static void round_rows(const float *x, size_t ld, int rows, int d, bf16 *to) {
#pragma omp for schedule(static)
  for (int r = 0; r < rows; r++) round_row(x + r * ld, d, to + r * padded(d));
}

/* The layer norms of x [rows, width]; `normed` is a thread's own row. For all threads of a region. */
[[maybe_unused]] static void norm_rows(const float *x, int rows, const float *gamma, const float *beta, int width,
                                       float epsilon, float *normed, bf16 *to) {
#pragma omp for schedule(static)
  for (int r = 0; r < rows; r++) {
    layer_norm(x + r * padded(width), gamma, beta, width, epsilon, normed);
    round_row(normed, width, to + r * padded(width));
  }
}

/* Tasks of a product: one panel of columns each, with all rows, or where there are many threads, with some. */
struct Tasks {
  int panels, parts, rows;
  Tasks(int rows, int columns) : panels(panels_of(columns)), rows(rows) {
    parts = minimum((4 * omp_get_num_threads() + panels - 1) / panels, (rows + 4 * TILE - 1) / (4 * TILE));
    parts = parts < 1 ? 1 : parts;
  }
  int count() const { return panels * parts; }
  int panel(int task) const { return task / parts * PANEL; }
  int first(int task) const { return (task % parts) * each(); }
  int end(int task) const { return minimum(rows, first(task) + each()); }
  int each() const { return (tiles_of(rows) + parts - 1) / parts * TILE; }
};

/* ending(row, column, low, high) of x @ w + bias: 32 columns of each row, x [rows, k] and w [k, n].

   panel_of(column) is w's panel of the columns from there on. For all threads of a region. */
template <typename PanelOf, typename Ending>
static void project_panels(const bf16 *x, int rows, int k, const float *bias, int n, PanelOf panel_of, Ending ending) {
  const Tasks tasks(rows, n);
#pragma omp for schedule(dynamic, 1)
  for (int task = 0; task < tasks.count(); task++) {
    const int j = tasks.panel(task);
    const vec bias_low = load_some(bias + j, n - j), bias_high = load_some(bias + j + LANES, n - j - LANES);
    multiply_rows(by_rows(x, padded(k)), tasks.first(task), tasks.end(task), panel_of(j), pairs_of(k),
                  [&](int r, vec low, vec high) { ending(r, j, low + bias_low, high + bias_high); });
  }
}

#endif

/* Rows of float32 numbers, rounded to bfloat16 for products, `padded` numbers apart. */
#ifndef TFPPO_ROUNDED_H
#define TFPPO_ROUNDED_H

#include <omp.h>

#include <vector>

#include "products.h"

INLINE void round_row(const float *x, int n, bf16 *to) {
  for (int i = 0; i < n; i += PANEL)
    store_panel(to + i, load_some(x + i, n - i), load_some(x + i + LANES, n - i - LANES));
}

/* The layer norms of x [rows, width]. For all threads of a region. */
static void norm_rows(const float *x, int rows, const float *gamma, const float *beta, int width, float epsilon,
                      bf16 *to) {
  std::vector<float> normed(width);
#pragma omp for schedule(static)
  for (int r = 0; r < rows; r++) {
    layer_norm(x + r * padded(width), gamma, beta, width, epsilon, normed.data());
    round_row(normed.data(), width, to + r * padded(width));
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

#endif

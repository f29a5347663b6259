/* A TensorFlow operation for the gradients of embeddings:

   TfppoAddRows  adds rows to those rows of a matrix that are named, some of them more than once */
#ifdef __AVX512BF16__
#include "memory.h"
#include "operations.h"
#include "products.h"

namespace {

static void compute_add_rows(const NoAttributes &, Context &context) {
  enum { MATRIX, ROWS, PLACES };
  const char *const hint = "rows do not fit the matrix or the places";
  Size height{"V"}, columns{"D"}, count{"N"};
  check_shape(*context.tensor(MATRIX), "matrix", {&height, &columns});
  const float *rows = context.input<float>(ROWS, "rows", {&count, &columns}, hint);
  const int32_t *places = context.input<int32_t>(PLACES, "places", {&count}, hint);
  for (int64_t r = 0; r < count; r++)
    check(places[r] >= 0 && places[r] < height, "there is no row ", places[r], " of a matrix of ", int64_t(height));
  float *sums = context.overwritten<float>(MATRIX, "matrix", {&height, &columns}, 0);
  const int64_t last = count;
  const int width = columns;
  const std::lock_guard<std::mutex> lock(cores);
#pragma omp parallel for schedule(static)
  for (int i = 0; i < width; i += LANES) /* the rows in their order, so that threads don't matter */
    for (int64_t r = 0; r < last; r++) {
      float *to = sums + int64_t(places[r]) * width + i;
      store_some(to, load_some(to, width - i) + load_some(rows + r * width + i, width - i), width - i);
    }
}

static const Registration registration([] {
  if (!products_allowed()) return;
  define<NoAttributes, compute_add_rows>("TfppoAddRows", {"matrix: float", "rows: float", "places: int32"},
                                         {"sums: float"}, {});
});

}  // namespace
#endif

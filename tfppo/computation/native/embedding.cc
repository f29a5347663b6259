/* A TensorFlow operation for the gradients of embeddings:

   TfppoAddRows  adds rows to those rows of a matrix that are named, some of them more than once */
#ifdef __AVX512BF16__
#include <string>

#include "operations.h"
#include "products.h"

namespace {

static void compute_add_rows(void *, TF_OpKernelContext *context) {
  TF_Status *status = TF_NewStatus();
  int64_t sum_dims[2], dims[2];
  input<float>(context, 0, sum_dims, status);
  const float *rows = input<float>(context, 1, dims, status);
  int64_t num_places;
  const int32_t *places = input<int32_t>(context, 2, &num_places, status);
  if (TF_GetCode(status) == TF_OK) {
    const int width = dims[1];
    check(width == sum_dims[1] && num_places == dims[0], "TfppoAddRows: rows do not fit the matrix or the places",
          status);
    for (int64_t r = 0; r < dims[0] && TF_GetCode(status) == TF_OK; r++)
      if (places[r] < 0 || places[r] >= sum_dims[0]) {
        const std::string message =
            "there is no row " + std::to_string(places[r]) + " of a matrix of " + std::to_string(sum_dims[0]);
        TF_SetStatus(status, TF_INVALID_ARGUMENT, message.c_str());
      }
    float *sums = overwritten<float>(context, 0, 0, TF_FLOAT, {sum_dims[0], sum_dims[1]}, status);
    if (TF_GetCode(status) == TF_OK) {
      pthread_mutex_lock(&cores);
#pragma omp parallel for schedule(static)
      for (int i = 0; i < width; i += LANES) /* the rows in their order, so that threads don't matter */
        for (int64_t r = 0; r < dims[0]; r++) {
          float *to = sums + places[r] * sum_dims[1] + i;
          store_some(to, load_some(to, width - i) + load_some(rows + r * width + i, width - i), width - i);
        }
      pthread_mutex_unlock(&cores);
    }
  }
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  TF_DeleteStatus(status);
}

}  // namespace

__attribute__((constructor)) static void register_embedding_ops(void) {
  if (!products_allowed()) return;
  const char *const in[] = {"matrix: float", "rows: float", "places: int32", nullptr};
  const char *const out[] = {"sums: float", nullptr}, *const attrs[] = {nullptr};
  define<NoAttributes>("TfppoAddRows", in, out, attrs, compute_add_rows);
}
#endif

/* Three TensorFlow operations that sample with a Transformer on CPUs, through TensorFlow's C interface:

   TfppoExtend  reads T more tokens a row, with the cache: a prompt, or one token
   TfppoLogits  the output matrix, which is the token embedding
   TfppoDraw    the next token of every row, and its log-probability

   Each is one parallel region: its threads meet at barriers, with no scheduler between two products. */
#include "kernels.h"
#include "operations.h"

enum { X, START, REAL, CACHES, TASK = 64 };

struct Batch {
  int rows, length, width, heads, slots, start, hidden; /* of the batch, T, D, H, C, the first slot, of the MLP */
  float epsilon;
  const bool *real;
  float *x, *normed, *qkv, *context, *inner;
};

struct Extend {
  int32_t heads;
  float epsilon;
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    attribute(construction, "num_heads", &heads, status), attribute(construction, "epsilon", &epsilon, status);
  }
};

struct Logits {
  int32_t masked;
  float penalty;
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    attribute(construction, "masked", &masked, status), attribute(construction, "penalty", &penalty, status);
  }
};

struct Draw {
  float temperature;
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    attribute(construction, "temperature", &temperature, status);
  }
};

static void project(const float *x, int rows, int k, const float *w, int n, const float *bias, Ending ending,
                    float *out) {
  const int columns = columns_of_task(n, rows, omp_get_num_threads());
#pragma omp for schedule(dynamic, 1)
  for (int j = 0; j < n; j += columns)
    project_columns(x, rows, k, w + j, n, bias + j, minimum(columns, n - j), ending, out + j);
}

static void norm_rows(const float *x, int rows, const float *gamma, const float *beta, const Batch *b, float *out,
                      int ldo) {
#pragma omp for schedule(static)
  for (int r = 0; r < rows; r++)
    layer_norm(x + size_t(r) * stride_of(b->width), gamma, beta, b->width, b->epsilon, out + size_t(r) * ldo);
}

/* Writes the keys and values of a row's head into its cache and reads them from position `first` of the new ones on. */
static void attend_head(const Batch *b, int row, int head, int first, float *keys, float *values, float *scores) {
  const int d = b->width / b->heads, wanted = b->length - first;
  const float scale = 1.0f / sqrtf(d);
  const size_t cache = (size_t(row) * b->heads + head) * b->slots * d;
  const int ldq = stride_of(3 * b->width);
  float *qkv = b->qkv + size_t(row) * b->length * ldq + head * d;
  for (int t = 0; t < b->length; t++) {
    const float *at = qkv + size_t(t) * ldq;
    memcpy(keys + cache + size_t(b->start + t) * d, at + b->width, d * sizeof(float));
    memcpy(values + cache + size_t(b->start + t) * d, at + 2 * b->width, d * sizeof(float));
  }
  for (int t = first; t < b->length; t++) {
    float *query = qkv + size_t(t) * ldq;
    for (int i = 0; i < d; i++) query[i] *= scale;
    attend(query, keys + cache, values + cache, b->real + size_t(row) * b->slots, b->start + t + 1, d, scores,
           b->context + (size_t(row) * wanted + t - first) * stride_of(b->width) + head * d);
  }
}

/* One block over the states b->x; of the last block, the last position of each row alone, which moves to the front. */
static void run_block(const Batch *b, const Block *w, int is_last, float *keys, float *values, float *scores) {
  const int all = b->rows * b->length, first = is_last ? b->length - 1 : 0, rows = b->rows * (b->length - first);
  const int ld = stride_of(b->width);
  norm_rows(b->x, all, w->norm1_gamma, w->norm1_beta, b, b->normed, ld);
  project(b->normed, all, b->width, w->qkv, 3 * b->width, w->qkv_bias, ASSIGN, b->qkv);
#pragma omp for schedule(dynamic, 1)
  for (int i = 0; i < b->rows * b->heads; i++) attend_head(b, i / b->heads, i % b->heads, first, keys, values, scores);
  if (is_last && b->length > 1) {
#pragma omp single
    for (int r = 0; r < b->rows; r++)
      memmove(b->x + size_t(r) * ld, b->x + (size_t(r) * b->length + first) * ld, b->width * sizeof(float));
  }
  project(b->context, rows, b->width, w->out, b->width, w->out_bias, ADD, b->x);
  norm_rows(b->x, rows, w->norm2_gamma, w->norm2_beta, b, b->normed, ld);
  project(b->normed, rows, b->width, w->in, b->hidden, w->in_bias, GELU, b->inner);
  project(b->inner, rows, b->hidden, w->back, b->width, w->back_bias, ADD, b->x);
}

static void compute_extend(void *kernel, TF_OpKernelContext *context) {
  const Extend *self = static_cast<const Extend *>(kernel);
  TF_Status *status = TF_NewStatus();
  const int num_blocks = (TF_NumOutputs(context) - 1) / 2, num_weights = num_blocks * PER_BLOCK + PER_TRUNK;
  const bool is_new = TF_NumInputs(context) == CACHES + num_weights; /* there is no cache yet */
  int64_t x_dims[3], real_dims[2], inner_dims[2];
  std::vector<const float *> w(num_weights);
  std::vector<float *> caches(2 * num_blocks);
  const float *x = input<float>(context, X, x_dims, status);
  const int32_t *start = input<int32_t>(context, START, nullptr, status);
  const bool *real = input<bool>(context, REAL, real_dims, status);
  for (int i = 0; i < num_weights; i++)
    w[i] = input<float>(context, TF_NumInputs(context) - num_weights + i, i == INNER ? inner_dims : nullptr, status);
  const std::vector<int64_t> cache_dims = {x_dims[0], self->heads, real_dims[1], x_dims[2] / self->heads};
  for (size_t i = 0; i < caches.size() && TF_GetCode(status) == TF_OK; i++)
    caches[i] = overwritten<float>(context, is_new ? -1 : CACHES + int(i), 1 + int(i), TF_FLOAT, cache_dims, status);
  float *hidden = nullptr;
  if (TF_GetCode(status) == TF_OK) hidden = output<float>(context, 0, TF_FLOAT, {x_dims[0], x_dims[2]}, status);
  check(x_dims[1] > 0 && *start >= 0, "TfppoExtend: there must be a new token, at slot 0 or later", status);
  check(*start + x_dims[1] <= real_dims[1], "TfppoExtend: the cache has no slot for every new token", status);
  if (TF_GetCode(status) != TF_OK) {
    TF_OpKernelContext_Failure(context, status);
  } else if (x_dims[0] > 0) {
    Batch b = {.rows = int(x_dims[0]),
               .length = int(x_dims[1]),
               .width = int(x_dims[2]),
               .heads = self->heads,
               .slots = int(real_dims[1]),
               .start = *start,
               .hidden = int(inner_dims[1]),
               .epsilon = self->epsilon,
               .real = real,
               .x = nullptr,
               .normed = nullptr,
               .qkv = nullptr,
               .context = nullptr,
               .inner = nullptr};
    const size_t states = size_t(b.rows) * b.length, ld = stride_of(b.width), size = states * ld;
    std::vector<float> room(3 * size + states * (stride_of(3 * b.width) + stride_of(b.hidden)));
    b.x = room.data(), b.normed = b.x + size, b.context = b.normed + size, b.qkv = b.context + size;
    b.inner = b.qkv + states * stride_of(3 * b.width);
    for (size_t i = 0; i < states; i++) memcpy(b.x + i * ld, x + i * b.width, b.width * sizeof(float));
    pthread_mutex_lock(&cores);
#pragma omp parallel
    {
      std::vector<float> scores(b.slots + LANES);
      for (int i = 0; i < num_blocks; i++)
        run_block(&b, reinterpret_cast<const Block *>(&w[i * PER_BLOCK]), i == num_blocks - 1, caches[2 * i],
                  caches[2 * i + 1], scores.data());
      norm_rows(b.x, b.rows, w[w.size() - 2], w[w.size() - 1], &b, hidden, b.width);
    }
    pthread_mutex_unlock(&cores);
  }
  TF_DeleteStatus(status);
}

static void compute_logits(void *kernel, TF_OpKernelContext *context) {
  const Logits *self = static_cast<const Logits *>(kernel);
  TF_Status *status = TF_NewStatus();
  int64_t x_dims[2], e_dims[2];
  const float *x = input<float>(context, 0, x_dims, status), *e = input<float>(context, 1, e_dims, status);
  float *logits = nullptr;
  if (TF_GetCode(status) == TF_OK) logits = output<float>(context, 0, TF_FLOAT, {x_dims[0], e_dims[0]}, status);
  if (TF_GetCode(status) == TF_OK) {
    const int n = e_dims[0], d = e_dims[1], rows = x_dims[0];
    const int group = rows > 8 ? LANES : 8, groups = (rows + group - 1) / group; /* narrow vectors know one size */
    std::vector<float> transposed(size_t(groups) * d * group);
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < d; k++) transposed[(size_t(r / group) * d + k) * group + r % group] = x[size_t(r) * d + k];
    pthread_mutex_lock(&cores);
#pragma omp parallel for schedule(dynamic, 1)
    for (int v = 0; v < n; v += TASK)
      for (int g = 0; g < groups; g++)
        (group == 8 ? dots<vec8> : dots<vec>)(&transposed[size_t(g) * d * group], minimum(group, rows - g * group),
                                              e + size_t(v) * d, minimum(TASK, n - v), d,
                                              logits + size_t(g) * group * n + v, n);
    pthread_mutex_unlock(&cores);
    for (int r = 0; r < rows; r++) logits[size_t(r) * n + self->masked] += self->penalty;
  } else {
    TF_OpKernelContext_Failure(context, status);
  }
  TF_DeleteStatus(status);
}

static void compute_draw(void *kernel, TF_OpKernelContext *context) {
  const float scale = 1.0f / static_cast<const Draw *>(kernel)->temperature;
  TF_Status *status = TF_NewStatus();
  int64_t dims[2];
  const float *logits = input<float>(context, 0, dims, status), *uniforms = input<float>(context, 1, nullptr, status);
  int32_t *tokens = nullptr;
  float *logprobs = nullptr;
  if (TF_GetCode(status) == TF_OK) tokens = output<int32_t>(context, 0, TF_INT32, {dims[0]}, status);
  if (TF_GetCode(status) == TF_OK) logprobs = output<float>(context, 1, TF_FLOAT, {dims[0]}, status);
  if (TF_GetCode(status) == TF_OK) {
    const int n = dims[1];
    pthread_mutex_lock(&cores);
#pragma omp parallel
    {
      std::vector<float> weights(n + BLOCK), sums(n / BLOCK + 1);
#pragma omp for schedule(dynamic, 1)
      for (int r = 0; r < int(dims[0]); r++)
        tokens[r] = draw(logits + size_t(r) * n, n, scale, uniforms[r], weights.data(), sums.data(), logprobs + r);
    }
    pthread_mutex_unlock(&cores);
  } else {
    TF_OpKernelContext_Failure(context, status);
  }
  TF_DeleteStatus(status);
}

__attribute__((constructor)) static void register_ops(void) {
  const char *const extend_in[] = {
      "x: float", "start: int32", "real: bool", "caches: num_caches * float", "weights: num_weights * float", nullptr};
  const char *const extend_out[] = {"hidden: float", "grown: num_grown * float", nullptr};
  const char *const extend_attrs[] = {"num_caches: int >= 0", "num_grown: int >= 2", "num_weights: int >= 1",
                                      "num_heads: int",       "epsilon: float",      nullptr};
  define<Extend>("TfppoExtend", extend_in, extend_out, extend_attrs, compute_extend);
  const char *const logits_in[] = {"hidden: float", "embedding: float", nullptr};
  const char *const logits_out[] = {"logits: float", nullptr};
  const char *const logits_attrs[] = {"masked: int", "penalty: float", nullptr};
  define<Logits>("TfppoLogits", logits_in, logits_out, logits_attrs, compute_logits);
  const char *const draw_in[] = {"logits: float", "uniforms: float", nullptr};
  const char *const draw_out[] = {"tokens: int32", "logprobs: float", nullptr};
  const char *const draw_attrs[] = {"temperature: float", nullptr};
  define<Draw>("TfppoDraw", draw_in, draw_out, draw_attrs, compute_draw);
}

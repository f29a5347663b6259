/* TensorFlow operations that sample with a Transformer on CPUs by products of bfloat16 numbers, by tiles or vectors:

   TfppoPack           a matrix as the others read it
   TfppoExtendRounded  as TfppoExtend, with packed matrices and a cache of bfloat16
   TfppoLogitsRounded  as TfppoLogits, with the packed transpose of the token embedding

   They round what TfppoTrunk rounds: a state's hidden numbers are the same to float32's rounding, but where a number
   lies between two of bfloat16. In the cache, the values of two neighbouring slots lie together, number by number. */
#ifdef __AVX512BF16__
#include "memory.h"
#include "operations.h"
#include "rounded.h"

namespace {

enum { X, START, REAL, CACHES };                       /* inputs */
enum { MATRICES = 4, VECTORS = 8, BIAS_OF_INNER = 6 }; /* of a block; the vector as wide as the MLP */

/* A block's weights: packed matrices, and vectors. */
struct Matrices {
  const uint32_t *qkv, *out, *in, *back;
};
struct Vectors {
  const float *norm1_gamma, *norm1_beta, *qkv_bias, *out_bias, *norm2_gamma, *norm2_beta, *in_bias, *back_bias;
};

struct Batch {
  int rows, length, width, heads, slots, start, inner; /* of the batch, T, D, H, C, the first slot, of the MLP */
  float epsilon;
  const bool *real;
  float *x; /* as all below, rows of `padded` width */
  bf16 *normed, *qkv, *context, *activated;
  int head_width() const { return width / heads; }
};

/* An even number of slots, as values lie in pairs. */
static int64_t even(int64_t slots) { return (slots + 1) / 2 * 2; }

/* `project_panels` by w [k, n] packed. */
template <typename Ending>
static void project(const bf16 *x, int rows, int k, const uint32_t *w, int n, const float *bias, Ending ending) {
  const size_t size = panel_size(pairs_of(k));
  project_panels(x, rows, k, bias, n, [&](int j) { return w + j / PANEL * size; }, ending);
}

/* sums[s] += x . y[s] of 32 numbers, or with n fewer, n. */
INLINE __m512 add_product(__m512 sum, const bf16 *x, const bf16 *y, int n) {
  const __mmask32 some = n >= 2 * LANES ? ~0u : (1u << n) - 1;
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_maskz_loadu_epi16(some, x),
                          (__m512bh)_mm512_maskz_loadu_epi16(some, y));
}

/* context[0:d] = softmax(scale query . keys) @ values over the slots that may be seen; 0 where there are none.

   scores has room for `slots` and LANES more, weights too; all but their numbers for these slots are finite. */
static void attend(const bf16 *query, const bf16 *keys, const uint32_t *values, const bool *seen, int slots, int d,
                   float scale, float *scores, bf16 *weights, bf16 *context) {
  vec highest = (vec){} - INFINITY, total = {};
  uint32_t any = 0;
  for (int first = 0; first < slots; first += LANES) {
    __m512 sums[LANES] = {};
    uint32_t visible = 0;
    for (int s = 0; s < minimum(LANES, slots - first); s++) {
      for (int i = 0; i < d; i += 2 * LANES)
        sums[s] = add_product(sums[s], query + i, keys + size_t(first + s) * d + i, d - i);
      visible |= uint32_t(seen[first + s]) << s;
    }
    any |= visible;
    const vec score = sums_of((const vec *)sums) * scale;
    store(scores + first, (vec)_mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), visible, (__m512)score));
    highest = load(scores + first) > highest ? load(scores + first) : highest;
  }
  if (!any) return (void)memset(context, 0, d * sizeof(bf16));
  const float largest = _mm512_reduce_max_ps((__m512)highest);
  for (int s = 0; s < slots; s += LANES) {
    const vec score = load(scores + s), weight = score == -INFINITY ? (vec){} : exp_of(score - largest);
    store_rounded(weights + s, weight);
    total += weight;
  }
  const float sum = sum_of(total);
  for (int j = 0; j < d; j += 4 * LANES) {
    __m512 sums[4] = {};
    for (int pair = 0; pair < (slots + 1) / 2; pair++) {
      uint32_t two;
      memcpy(&two, weights + 2 * pair, sizeof(two));
      const __m512bh both = (__m512bh)_mm512_set1_epi32(two);
      const uint32_t *of_pair = values + size_t(pair) * d + j;
      for (int i = 0; i < 4; i++) {
        const __m512i value = _mm512_maskz_loadu_epi32(first_lanes(d - j - i * LANES), of_pair + i * LANES);
        sums[i] = _mm512_dpbf16_ps(sums[i], both, (__m512bh)value);
      }
    }
    for (int i = 0; i < 4; i++) store_rounded_some(context + j + i * LANES, (vec)sums[i] / sum, d - j - i * LANES);
  }
}

/* Writes a token's value into its half of the pairs; the first of a pair clears the other's. */
INLINE void write_value(const bf16 *value, int slot, int d, uint32_t *values) {
  uint32_t *pairs = values + size_t(slot / 2) * d;
  for (int i = 0; i < d; i += LANES) {
    const __mmask16 some = first_lanes(d - i);
    __m512i both = _mm512_cvtepu16_epi32(some_rounded(value + i, d - i));
    if (slot % 2)
      both = paired(_mm512_cvtepi32_epi16(_mm512_maskz_loadu_epi32(some, pairs + i)), _mm512_cvtepi32_epi16(both));
    _mm512_mask_storeu_epi32(pairs + i, some, both);
  }
}

/* Writes the keys and values of a row's head into its cache and reads them from position `first` of the new ones on. */
static void attend_head(const Batch &b, int row, int head, int first, bf16 *keys, uint32_t *values, float *scores,
                        bf16 *weights) {
  const int d = b.head_width(), wanted = b.length - first;
  const size_t ld = padded(3 * b.width), own = size_t(row) * b.heads + head;
  const bf16 *qkv = b.qkv + size_t(row) * b.length * ld + head * d;
  keys += own * even(b.slots) * d, values += own * even(b.slots) / 2 * d;
  for (int t = 0; t < b.length; t++) {
    memcpy(keys + size_t(b.start + t) * d, qkv + t * ld + b.width, d * sizeof(bf16));
    write_value(qkv + t * ld + 2 * b.width, b.start + t, d, values);
  }
  for (int t = first; t < b.length; t++) {
    const size_t to = size_t(row) * wanted + t - first;
    if (head == 0) clear_end(b.context + to * padded(b.width), b.width);
    attend(qkv + t * ld, keys, values, b.real + size_t(row) * b.slots, b.start + t + 1, d, 1.0f / sqrtf(d), scores,
           weights, b.context + to * padded(b.width) + head * d);
  }
}

/* One block over the states b.x; of the last block, the last position of each row alone, which moves to the front. */
static void run_block(const Batch &b, const Matrices &m, const Vectors &v, bool is_last, bf16 *keys, bf16 *values,
                      float *scores, bf16 *weights) {
  const int all = b.rows * b.length, first = is_last ? b.length - 1 : 0, rows = b.rows * (b.length - first);
  const int d = b.width;
  const size_t ld = padded(d), ld3 = padded(3 * d), ldi = padded(b.inner);
  const auto to_residual = [&](int r, int j, vec low, vec high) {
    float *x = b.x + r * ld + j;
    store_panel(x, load(x) + low, load(x + LANES) + high);
  };
  norm_rows(b.x, all, v.norm1_gamma, v.norm1_beta, d, b.epsilon, b.normed);
  project(b.normed, all, d, m.qkv, 3 * d, v.qkv_bias,
          [&](int r, int j, vec low, vec high) { store_panel(b.qkv + r * ld3 + j, low, high); });
#pragma omp for schedule(dynamic, 1)
  for (int i = 0; i < b.rows * b.heads; i++)
    attend_head(b, i / b.heads, i % b.heads, first, keys, (uint32_t *)values, scores, weights);
  if (is_last && b.length > 1) {
#pragma omp single
    for (int r = 0; r < b.rows; r++)
      memmove(b.x + r * ld, b.x + (size_t(r) * b.length + first) * ld, d * sizeof(float));
  }
  project(b.context, rows, d, m.out, d, v.out_bias, to_residual);
  norm_rows(b.x, rows, v.norm2_gamma, v.norm2_beta, d, b.epsilon, b.normed);
  project(b.normed, rows, d, m.in, b.inner, v.in_bias, [&](int r, int j, vec low, vec high) {
    store_panel(b.activated + r * ldi + j, gelu_of(low), gelu_of(high));
  });
  project(b.activated, rows, b.inner, m.back, d, v.back_bias, to_residual);
}

struct Extend {
  int32_t heads;
  float epsilon;
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    attribute(construction, "num_heads", &heads, status), attribute(construction, "epsilon", &epsilon, status);
  }
};

static Batch batch_in(Room &room, Batch b) {
  const size_t states = size_t(b.rows) * b.length, ld = padded(b.width);
  b.x = room.take<float>(states * ld);
  b.normed = room.take<bf16>(states * ld), b.context = room.take<bf16>(states * ld);
  b.qkv = room.take<bf16>(states * padded(3 * b.width)), b.activated = room.take<bf16>(states * padded(b.inner));
  return b;
}

static void extend(const Batch &sizes, const float *x, const std::vector<const uint32_t *> &matrices,
                   const std::vector<const float *> &vectors, const std::vector<bf16 *> &caches, float *hidden,
                   TF_Status *status) {
  const int num_blocks = matrices.size() / MATRICES;
  const size_t ld = padded(sizes.width);
  Room measured = {nullptr};
  batch_in(measured, sizes);
  const Region region(measured.size, status);
  if (!region.at) return;
  Room room = {region.at};
  const Batch b = batch_in(room, sizes);
#pragma omp parallel
  {
    std::vector<float> scores(b.slots + LANES);
    std::vector<bf16> weights(b.slots + LANES);
#pragma omp for schedule(static)
    for (int i = 0; i < b.rows * b.length; i++) memcpy(b.x + i * ld, x + size_t(i) * b.width, b.width * sizeof(float));
    for (int i = 0; i < num_blocks; i++)
      run_block(b, *reinterpret_cast<const Matrices *>(&matrices[i * MATRICES]),
                *reinterpret_cast<const Vectors *>(&vectors[i * VECTORS]), i == num_blocks - 1, caches[2 * i],
                caches[2 * i + 1], scores.data(), weights.data());
#pragma omp for schedule(static)
    for (int r = 0; r < b.rows; r++)
      layer_norm(b.x + r * ld, vectors[num_blocks * VECTORS], vectors[num_blocks * VECTORS + 1], b.width, b.epsilon,
                 hidden + size_t(r) * b.width);
  }
}

static void compute_extend(void *kernel, TF_OpKernelContext *context) {
  const Extend *self = static_cast<const Extend *>(kernel);
  TF_Status *status = TF_NewStatus();
  const int num_blocks = (TF_NumOutputs(context) - 1) / 2, num_matrices = num_blocks * MATRICES;
  const int num_vectors = num_blocks * VECTORS + PER_TRUNK;
  const bool is_new = TF_NumInputs(context) == CACHES + num_matrices + num_vectors; /* there is no cache yet */
  int from = CACHES + (is_new ? 0 : 2 * num_blocks);
  int64_t x_dims[3], real_dims[2], inner = 0;
  std::vector<const uint32_t *> matrices(num_matrices);
  std::vector<const float *> vectors(num_vectors);
  std::vector<bf16 *> caches(2 * num_blocks);
  const float *x = input<float>(context, X, x_dims, status);
  const int32_t *start = input<int32_t>(context, START, nullptr, status);
  const bool *real = input<bool>(context, REAL, real_dims, status);
  for (auto &matrix : matrices) matrix = input<uint32_t>(context, from++, nullptr, status);
  for (int i = 0; i < num_vectors; i++)
    vectors[i] = input<float>(context, from++, i == BIAS_OF_INNER ? &inner : nullptr, status);
  const std::vector<int64_t> cache_dims = {x_dims[0], self->heads, even(real_dims[1]), x_dims[2] / self->heads};
  for (size_t i = 0; i < caches.size() && TF_GetCode(status) == TF_OK; i++)
    caches[i] = overwritten<bf16>(context, is_new ? -1 : CACHES + int(i), 1 + int(i), TF_BFLOAT16, cache_dims, status);
  float *hidden = nullptr;
  if (TF_GetCode(status) == TF_OK) hidden = output<float>(context, 0, TF_FLOAT, {x_dims[0], x_dims[2]}, status);
  check(x_dims[1] > 0 && *start >= 0, "TfppoExtendRounded: there must be a new token, at slot 0 or later", status);
  check(*start + x_dims[1] <= real_dims[1], "TfppoExtendRounded: the cache has no slot for every new token", status);
  if (TF_GetCode(status) == TF_OK) {
    const Batch b = {.rows = int(x_dims[0]),
                     .length = int(x_dims[1]),
                     .width = int(x_dims[2]),
                     .heads = self->heads,
                     .slots = int(real_dims[1]),
                     .start = *start,
                     .inner = int(inner),
                     .epsilon = self->epsilon,
                     .real = real};
    if (b.rows) extend(b, x, matrices, vectors, caches, hidden, status);
  }
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  TF_DeleteStatus(status);
}

struct Logits {
  int32_t num_tokens, masked;
  float penalty;
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    attribute(construction, "num_tokens", &num_tokens, status), attribute(construction, "masked", &masked, status);
    attribute(construction, "penalty", &penalty, status);
  }
};

static void compute_logits(void *kernel, TF_OpKernelContext *context) {
  const Logits *self = static_cast<const Logits *>(kernel);
  TF_Status *status = TF_NewStatus();
  int64_t x_dims[2];
  const float *x = input<float>(context, 0, x_dims, status);
  const uint32_t *e = input<uint32_t>(context, 1, nullptr, status);
  float *logits = nullptr;
  if (TF_GetCode(status) == TF_OK) logits = output<float>(context, 0, TF_FLOAT, {x_dims[0], self->num_tokens}, status);
  if (TF_GetCode(status) == TF_OK) {
    const int n = self->num_tokens, rows = x_dims[0], d = x_dims[1], pairs = pairs_of(d);
    std::vector<bf16> rounded(rows * padded(d));
    pthread_mutex_lock(&cores);
    for (int r = 0; r < rows; r++) round_row(x + size_t(r) * d, d, &rounded[r * padded(d)]);
#pragma omp parallel for schedule(dynamic, 4)
    for (int panel = 0; panel < panels_of(n); panel++) {
      float *to = logits + size_t(panel) * PANEL;
      multiply_rows(by_rows(rounded.data(), padded(d)), 0, rows, e + panel * panel_size(pairs), pairs,
                    [&](int r, vec low, vec high) { store_panel(to + size_t(r) * n, low, high, n - panel * PANEL); });
    }
    pthread_mutex_unlock(&cores);
    for (int r = 0; r < rows; r++) logits[size_t(r) * n + self->masked] += self->penalty;
  } else {
    TF_OpKernelContext_Failure(context, status);
  }
  TF_DeleteStatus(status);
}

struct Pack {
  int32_t transposed;
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    attribute(construction, "transposed", &transposed, status);
  }
};

static void compute_pack(void *kernel, TF_OpKernelContext *context) {
  const bool transposed = static_cast<const Pack *>(kernel)->transposed;
  TF_Status *status = TF_NewStatus();
  int64_t dims[2];
  const float *matrix = input<float>(context, 0, dims, status);
  const int k = dims[transposed ? 1 : 0], n = dims[transposed ? 0 : 1], panels = panels_of(n), pairs = pairs_of(k);
  bf16 *packed = nullptr;
  if (TF_GetCode(status) == TF_OK)
    packed = output<bf16>(context, 0, TF_BFLOAT16, {panels, pairs, 2 * int64_t(PANEL)}, status);
  if (TF_GetCode(status) == TF_OK) {
    pthread_mutex_lock(&cores);
#pragma omp parallel
    {
      std::vector<uint32_t> turned(panel_size(pairs + LANES)); /* pack_transposed writes whole groups of pairs */
#pragma omp for schedule(dynamic, 4)
      for (int panel = 0; panel < panels; panel++) {
        const int j = panel * PANEL;
        uint32_t *to = (uint32_t *)packed + panel * panel_size(pairs);
        if (transposed) {
          pack_transposed(matrix + size_t(j) * k, k, minimum(PANEL, n - j), k, turned.data());
          memcpy(to, turned.data(), panel_size(pairs) * sizeof(uint32_t));
        } else {
          pack_rows(matrix + j, n, k, n - j, to);
        }
      }
    }
    pthread_mutex_unlock(&cores);
  } else {
    TF_OpKernelContext_Failure(context, status);
  }
  TF_DeleteStatus(status);
}

}  // namespace

__attribute__((constructor)) static void register_rounded_ops(void) {
  if (!products_allowed()) return;
  const char *const extend_in[] = {"x: float",
                                   "start: int32",
                                   "real: bool",
                                   "caches: num_caches * bfloat16",
                                   "matrices: num_matrices * bfloat16",
                                   "vectors: num_vectors * float",
                                   nullptr};
  const char *const extend_out[] = {"hidden: float", "grown: num_grown * bfloat16", nullptr};
  const char *const extend_attrs[] = {"num_caches: int >= 0",
                                      "num_grown: int >= 2",
                                      "num_matrices: int >= 1",
                                      "num_vectors: int >= 1",
                                      "num_heads: int",
                                      "epsilon: float",
                                      nullptr};
  define<Extend>("TfppoExtendRounded", extend_in, extend_out, extend_attrs, compute_extend);
  const char *const logits_in[] = {"hidden: float", "embedding: bfloat16", nullptr};
  const char *const logits_out[] = {"logits: float", nullptr};
  const char *const logits_attrs[] = {"num_tokens: int", "masked: int", "penalty: float", nullptr};
  define<Logits>("TfppoLogitsRounded", logits_in, logits_out, logits_attrs, compute_logits);
  const char *const pack_in[] = {"matrix: float", nullptr};
  const char *const pack_out[] = {"packed: bfloat16", nullptr};
  const char *const pack_attrs[] = {"transposed: int", nullptr};
  define<Pack>("TfppoPack", pack_in, pack_out, pack_attrs, compute_pack);
}
#endif

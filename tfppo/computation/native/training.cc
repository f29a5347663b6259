/* Two TensorFlow operations that train a Transformer on CPUs with products of bfloat16 numbers, by tiles or vectors:

   TfppoTrunk          blocks and final norm over whole sequences, and what the gradient needs of them
   TfppoTrunkGradient  the gradients of their input and weights

   The residual stream, norms, softmaxes and their gradients are float32; what is multiplied is rounded to bfloat16.
   Only real tokens are computed: they lie next to each other, whatever pads surround them. */
#ifdef __AVX512BF16__
#include <memory>

#include "attention.h"
#include "operations.h"
#include "rounded.h"

enum { MATRICES = 4 }; /* of a block, whose gradients are bfloat16 */
enum { CHUNK = 32 };   /* rows whose part of a norm's gradient is summed together, so that threads don't matter */

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

/* One block: from kept.x to `next`, [tokens, width]. */
static void block_forward(const Trunk &t, const Block &w, const Kept &kept, bool is_last, bf16 *activated,
                          uint32_t *panel, Head &head, float *next) {
  const int d = t.width, tokens = t.num_tokens(), queries = is_last ? t.num_queries() : tokens;
  const size_t ld = padded(d), ld3 = padded(3 * d), ldi = padded(t.inner);
#pragma omp for schedule(static) nowait
  for (int r = 0; r < tokens; r++) clear_end(kept.qkv + r * ld3, 3 * d); /* which a narrow head's products reach */
  norm_rows(kept.x, tokens, w.norm1_gamma, w.norm1_beta, d, t.epsilon, kept.normed1);
  project(kept.normed1, tokens, d, w.qkv, w.qkv_bias, 3 * d, panel,
          [&](int r, int j, vec low, vec high) { store_panel(kept.qkv + r * ld3 + j, low, high); });
#pragma omp for schedule(dynamic, 1)
  for (int i = 0; i < t.rows * t.heads; i++) attend_forward(t, i / t.heads, i % t.heads, kept, is_last, head);
  project(kept.context, queries, d, w.out, w.out_bias, d, panel, [&](int r, int j, vec low, vec high) {
    const float *x = kept.x + (is_last ? t.tokens.query[r] : r) * ld + j;
    store_panel(kept.middle + r * ld + j, load(x) + low, load(x + LANES) + high);
  });
  norm_rows(kept.middle, queries, w.norm2_gamma, w.norm2_beta, d, t.epsilon, kept.normed2);
  project(kept.normed2, queries, d, w.in, w.in_bias, t.inner, panel, [&](int r, int j, vec low, vec high) {
    store_panel(kept.inner + r * ldi + j, low, high);
    store_panel(activated + r * ldi + j, gelu_of(low), gelu_of(high));
  });
  project(activated, queries, t.inner, w.back, w.back_bias, d, panel, [&](int r, int j, vec low, vec high) {
    const float *x = kept.middle + r * ld + j;
    store_panel(next + r * ld + j, load(x) + low, load(x + LANES) + high);
  });
}

/* Arrays of the backward pass, which every block uses again. */
struct Backward {
  float *dx, *dnormed, *parts;
  bf16 *upstream, *dinner, *activated, *dcontext, *dqkv, *turned;
};

static Backward backward_in(Room &room, const Trunk &t) {
  const size_t tokens = t.num_tokens(), ld = padded(t.width);
  Backward b;
  b.dx = room.take<float>(tokens * ld), b.dnormed = room.take<float>(tokens * ld);
  b.parts = room.take<float>((tokens / CHUNK + 1) * 2 * t.width);
  b.upstream = room.take<bf16>(tokens * ld), b.dcontext = room.take<bf16>(tokens * ld);
  b.dinner = room.take<bf16>(tokens * padded(t.inner)), b.activated = room.take<bf16>(tokens * padded(t.inner));
  b.dqkv = room.take<bf16>(tokens * padded(3 * t.width));
  b.turned = room.take<bf16>((t.widest() + LANES) * padded(tokens));
  return b;
}

/* A block's gradients, in the order of its weights; b.dx turns from that of its output into that of its input. */
static void block_back(const Trunk &t, const Block &w, const Kept &kept, bool is_last, const Backward &b,
                       uint32_t *panel, Head &head, void *const *gradients) {
  const int d = t.width, tokens = t.num_tokens(), queries = is_last ? t.num_queries() : tokens;
  const size_t ld = padded(d), ldi = padded(t.inner);
  const auto to_normed = [&](int r, int j, vec low, vec high) { store_panel(b.dnormed + r * ld + j, low, high); };
  round_rows(b.dx, ld, queries, d, b.upstream);
  project_back(b.upstream, queries, d, w.back, t.inner, panel, [&](int r, int j, vec low, vec high) {
    const size_t at = r * ldi + j;
    vec y_low, y_high, slope_low, slope_high;
    gelu_and_slope(load_widened(kept.inner + at), &y_low, &slope_low);
    gelu_and_slope(load_widened(kept.inner + at + LANES), &y_high, &slope_high);
    store_panel(b.activated + at, y_low, y_high);
    store_panel(b.dinner + at, low * slope_low, high * slope_high);
  });
#pragma omp barrier
  turn(b.activated, queries, t.inner, b.turned);
  project_back(b.dinner, queries, t.inner, w.in, d, panel, to_normed);
#pragma omp barrier
  weight_gradients(b.turned, queries, t.inner, b.upstream, d, panel, (bf16 *)gradients[10], (float *)gradients[11]);
#pragma omp barrier
  turn(kept.normed2, queries, d, b.turned);
  norm_gradients(kept.middle, queries, b.dnormed, w.norm2_gamma, t, b.dx, b.parts, (float *)gradients[6],
                 (float *)gradients[7]);
  weight_gradients(b.turned, queries, d, b.dinner, t.inner, panel, (bf16 *)gradients[8], (float *)gradients[9]);
  round_rows(b.dx, ld, queries, d, b.upstream);
  turn(kept.context, queries, d, b.turned);
  project_back(b.upstream, queries, d, w.out, d, panel,
               [&](int r, int j, vec low, vec high) { store_panel(b.dcontext + r * ld + j, low, high); });
#pragma omp barrier
  weight_gradients(b.turned, queries, d, b.upstream, d, panel, (bf16 *)gradients[4], (float *)gradients[5]);
#pragma omp for schedule(dynamic, 1)
  for (int i = 0; i < t.rows * t.heads; i++)
    attend_back(t, i / t.heads, i % t.heads, kept, is_last, b.dcontext, b.dqkv, head);
  turn(kept.normed1, tokens, d, b.turned);
  project_back(b.dqkv, tokens, 3 * d, w.qkv, d, panel, to_normed);
  if (is_last) { /* from the queries' rows to the tokens', last ones first as they move back */
#pragma omp single nowait
    for (int token = tokens - 1, query = queries - 1; token >= 0; token--) {
      if (query >= 0 && t.tokens.query[query] == token)
        memmove(b.dx + token * ld, b.dx + query-- * ld, d * sizeof(float));
      else
        memset(b.dx + token * ld, 0, d * sizeof(float));
    }
  }
#pragma omp barrier
  weight_gradients(b.turned, tokens, d, b.dqkv, 3 * d, panel, (bf16 *)gradients[2], (float *)gradients[3]);
  norm_gradients(kept.x, tokens, b.dnormed, w.norm1_gamma, t, b.dx, b.parts, (float *)gradients[0],
                 (float *)gradients[1]);
}

struct TrunkAttributes {
  int32_t heads, start;
  float epsilon;
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    attribute(construction, "num_heads", &heads, status), attribute(construction, "start", &start, status);
    attribute(construction, "epsilon", &epsilon, status);
  }
};

struct ForwardAttributes : TrunkAttributes {
  int32_t keep; /* whether there will be a gradient */
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    TrunkAttributes::read(construction, status), attribute(construction, "keep", &keep, status);
  }
};

static Trunk trunk_of(const TrunkAttributes &self, const int64_t *x_dims, int64_t inner, const bool *real) {
  const int rows = x_dims[0], length = x_dims[1], width = x_dims[2];
  return {rows,       length,     self.start,   width,
          self.heads, int(inner), self.epsilon, tokens_of(real, rows, length, self.start)};
}

/* What threads need for themselves: a panel of the widest matrix, and a head of the longest row. */
static Head head_and_panel(Room &room, const Trunk &t, bool with_gradient, uint32_t **panel) {
  const int deepest = t.widest() > t.num_tokens() ? t.widest() : t.num_tokens();
  *panel = room.take<uint32_t>(panel_size(pairs_of(deepest) + LANES));
  return head_in(room, t.length, t.head_width(), with_gradient);
}

static size_t size_of_head_and_panel(const Trunk &t, bool with_gradient) {
  Room room = {nullptr};
  uint32_t *panel;
  head_and_panel(room, t, with_gradient, &panel);
  return room.size;
}

/* Hidden states of the queries in [B, T - start, D], of x [B, T, D]; `last` is the last block's output.

   `kept` is of every block; of none where there will be no gradient: then all blocks share one. */
static void forward(const Trunk &t, const std::vector<const float *> &w, std::vector<Kept> kept, const float *x,
                    float *last, float *hidden, TF_Status *status) {
  const int num_weights = w.size(), num_blocks = num_weights / PER_BLOCK;
  const bool is_shared = kept.empty();
  const size_t ld = padded(t.width), wanted = size_t(t.length - t.start) * t.rows * t.width;
  const size_t own = size_of_head_and_panel(t, false), activated_size = t.num_tokens() * padded(t.inner);
  Room sizes = {nullptr};
  sizes.take<bf16>(activated_size);
  if (is_shared) kept_in(sizes, t, false);
  const Region region(sizes.size + own * omp_get_max_threads(), status);
  if (!region.at) return;
  Room shared = {region.at};
  bf16 *activated = shared.take<bf16>(activated_size);
  if (is_shared) kept.assign(num_blocks, kept_in(shared, t, false));
  memset(hidden, 0, wanted * sizeof(float));
#pragma omp parallel
  {
    Room room = {shared.at + shared.size + own * omp_get_thread_num()};
    uint32_t *panel;
    Head head = head_and_panel(room, t, false, &panel);
#pragma omp for schedule(static)
    for (int i = 0; i < t.num_tokens(); i++)
      memcpy(kept[0].x + i * ld, x + size_t(t.tokens.place[i]) * t.width, t.width * sizeof(float));
    for (int i = 0; i < num_blocks; i++)
      block_forward(t, *reinterpret_cast<const Block *>(&w[i * PER_BLOCK]), kept[i], i == num_blocks - 1, activated,
                    panel, head, i == num_blocks - 1 ? last : kept[i + 1].x);
#pragma omp for schedule(static)
    for (int i = 0; i < t.num_queries(); i++)
      layer_norm(last + i * ld, w[num_weights - 2], w[num_weights - 1], t.width, t.epsilon, hidden + t.state_of(i));
  }
}

/* The gradients of all weights, and dx [B, T, D], of the upstream gradient [B, T - start, D] of the hidden states. */
static void backward(const Trunk &t, const std::vector<const float *> &w, const std::vector<Kept> &kept,
                     const float *last, const float *upstream, const std::vector<void *> &gradients, float *dx,
                     TF_Status *status) {
  const int num_blocks = kept.size(), num_weights = w.size();
  const size_t ld = padded(t.width), own = size_of_head_and_panel(t, true);
  Room sizes = {nullptr};
  backward_in(sizes, t);
  const Region region(sizes.size + own * omp_get_max_threads(), status);
  if (!region.at) return;
  Room shared = {region.at};
  const Backward b = backward_in(shared, t);
#pragma omp parallel
  {
    Room room = {shared.at + shared.size + own * omp_get_thread_num()};
    uint32_t *panel;
    Head head = head_and_panel(room, t, true, &panel);
#pragma omp for schedule(static)
    for (int i = 0; i < t.num_queries(); i++) {
      memcpy(b.dnormed + i * ld, upstream + t.state_of(i), t.width * sizeof(float));
      memset(b.dx + i * ld, 0, t.width * sizeof(float));
    }
#pragma omp for schedule(static)
    for (int i = 0; i < t.num_tokens(); i++) { /* where the heads' products end, and other heads' do not begin */
      clear_end(b.dcontext + i * ld, t.width);
      clear_end(b.dqkv + i * padded(3 * t.width), 3 * t.width);
    }
    norm_gradients(last, t.num_queries(), b.dnormed, w[num_weights - 2], t, b.dx, b.parts,
                   (float *)gradients[num_weights - 2], (float *)gradients[num_weights - 1]);
    for (int i = num_blocks - 1; i >= 0; i--)
      block_back(t, *reinterpret_cast<const Block *>(&w[i * PER_BLOCK]), kept[i], i == num_blocks - 1, b, panel, head,
                 &gradients[i * PER_BLOCK]);
#pragma omp for schedule(static)
    for (int row = 0; row < t.rows; row++) {
      memset(dx + size_t(row) * t.length * t.width, 0, size_t(t.length) * t.width * sizeof(float));
      for (int i = t.tokens.first_token[row]; i < t.tokens.first_token[row + 1]; i++)
        memcpy(dx + size_t(t.tokens.place[i]) * t.width, b.dx + i * ld, t.width * sizeof(float));
    }
  }
}

enum { TRUNK_X, TRUNK_REAL, TRUNK_WEIGHTS };

static void compute_trunk(void *kernel, TF_OpKernelContext *context) {
  const auto *self = static_cast<const ForwardAttributes *>(kernel);
  TF_Status *status = TF_NewStatus();
  const int num_blocks = TF_NumOutputs(context) - 2, num_weights = num_blocks * PER_BLOCK + PER_TRUNK;
  int64_t x_dims[3], inner_dims[2];
  std::vector<const float *> w(num_weights);
  const float *x = input<float>(context, TRUNK_X, x_dims, status);
  const bool *real = input<bool>(context, TRUNK_REAL, nullptr, status);
  for (int i = 0; i < num_weights; i++)
    w[i] = input<float>(context, TRUNK_WEIGHTS + i, i == INNER ? inner_dims : nullptr, status);
  if (TF_GetCode(status) == TF_OK) {
    const Trunk t = trunk_of(*self, x_dims, inner_dims[1], real);
    float *hidden = output<float>(context, 0, TF_FLOAT, {t.rows, t.length - t.start, t.width}, status);
    std::vector<Kept> kept;
    for (int i = 0; i < num_blocks; i++) {
      Room room = {nullptr};
      if (self->keep) kept_in(room, t, i == num_blocks - 1);
      room = {output<char>(context, 1 + i, TF_UINT8, {int64_t(room.size)}, status)};
      if (self->keep) kept.push_back(kept_in(room, t, i == num_blocks - 1));
    }
    float *last = output<float>(context, 1 + num_blocks, TF_FLOAT, {t.num_queries(), int64_t(padded(t.width))}, status);
    if (TF_GetCode(status) == TF_OK) forward(t, w, kept, x, last, hidden, status);
  }
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  TF_DeleteStatus(status);
}

static void compute_trunk_gradient(void *kernel, TF_OpKernelContext *context) {
  TF_Status *status = TF_NewStatus();
  const int num_weights = TF_NumOutputs(context) - 1, num_blocks = (num_weights - PER_TRUNK) / PER_BLOCK;
  const int num_matrices = num_blocks * MATRICES;
  int matrices = 0, vectors = 0;
  int64_t upstream_dims[3], real_dims[2], inner = 0;
  std::vector<const float *> w(num_weights);
  std::vector<void *> gradients(num_weights);
  std::vector<char *> blobs(num_blocks);
  const float *upstream = input<float>(context, 0, upstream_dims, status);
  const bool *real = input<bool>(context, 1, real_dims, status);
  for (int i = 0; i < num_blocks; i++) blobs[i] = const_cast<char *>(input<char>(context, 2 + i, nullptr, status));
  const float *last = input<float>(context, 2 + num_blocks, nullptr, status);
  for (int i = 0; i < num_weights && TF_GetCode(status) == TF_OK; i++) {
    TF_Tensor *tensor = nullptr;
    TF_GetInput(context, 3 + num_blocks + i, &tensor, status);
    if (TF_GetCode(status) != TF_OK) break;
    std::vector<int64_t> shape;
    for (int axis = 0; axis < TF_NumDims(tensor); axis++) shape.push_back(TF_Dim(tensor, axis));
    if (i == INNER) inner = shape[1];
    w[i] = static_cast<const float *>(TF_TensorData(tensor));
    TF_DeleteTensor(tensor);
    gradients[i] = shape.size() == 2 ? (void *)output<bf16>(context, 1 + matrices++, TF_BFLOAT16, shape, status)
                                     : output<float>(context, 1 + num_matrices + vectors++, TF_FLOAT, shape, status);
  }
  const int64_t x_dims[] = {real_dims[0], real_dims[1], upstream_dims[2]};
  float *dx = nullptr;
  if (TF_GetCode(status) == TF_OK) dx = output<float>(context, 0, TF_FLOAT, {x_dims[0], x_dims[1], x_dims[2]}, status);
  if (TF_GetCode(status) == TF_OK) {
    const Trunk t = trunk_of(*static_cast<const TrunkAttributes *>(kernel), x_dims, inner, real);
    std::vector<Kept> kept;
    for (int i = 0; i < num_blocks; i++) {
      Room room = {blobs[i]};
      kept.push_back(kept_in(room, t, i == num_blocks - 1));
    }
    backward(t, w, kept, last, upstream, gradients, dx, status);
  }
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  TF_DeleteStatus(status);
}

__attribute__((constructor)) static void register_training_ops(void) {
  if (!products_allowed()) return;
  const char *const attrs[] = {"num_blocks: int >= 1",
                               "num_weights: int >= 1",
                               "num_heads: int",
                               "start: int",
                               "epsilon: float",
                               "keep: int",
                               nullptr};
  const char *const trunk_in[] = {"x: float", "real: bool", "weights: num_weights * float", nullptr};
  const char *const trunk_out[] = {"hidden: float", "kept: num_blocks * uint8", "last: float", nullptr};
  define<ForwardAttributes>("TfppoTrunk", trunk_in, trunk_out, attrs, compute_trunk);
  const char *const gradient_in[] = {"upstream: float",
                                     "real: bool",
                                     "kept: num_blocks * uint8",
                                     "last: float",
                                     "weights: num_weights * float",
                                     nullptr};
  const char *const gradient_out[] = {"dx: float", "matrices: num_matrices * bfloat16", "vectors: num_vectors * float",
                                      nullptr};
  const char *const gradient_attrs[] = {"num_blocks: int >= 1",   "num_weights: int >= 1",
                                        "num_matrices: int >= 1", "num_vectors: int >= 1",
                                        "num_heads: int",         "start: int",
                                        "epsilon: float",         nullptr};
  define<TrunkAttributes>("TfppoTrunkGradient", gradient_in, gradient_out, gradient_attrs, compute_trunk_gradient);
}
#endif

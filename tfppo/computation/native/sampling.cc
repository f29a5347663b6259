/* Three TensorFlow operations that sample with a Transformer on CPUs, through TensorFlow's C interface:

   TfppoExtend  reads T more tokens a row, with the cache: a prompt, or one token
   TfppoLogits  the output matrix, which is the token embedding
   TfppoDraw    the next token of every row, and its log-probability

   Each is one parallel region: its threads meet at barriers, with no scheduler between two products. */
#include "kernels.h"
#include "memory.h"
#include "operations.h"
#include "weights.h"

namespace {

constexpr int TASK = 64; /* tokens of the output matrix */

struct Batch {
  int rows, length, width, heads, slots, start, hidden; /* of the batch, T, D, H, C, the first slot, of the MLP */
  float epsilon;
  const bool *real;
  float *x = nullptr, *normed = nullptr, *qkv = nullptr, *context = nullptr, *inner = nullptr;
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

struct Extend {
  int32_t num_blocks, num_caches, heads;
  float epsilon;
  explicit Extend(Attributes &from)
      : num_blocks(from.integer("num_grown") / 2),
        num_caches(from.integer("num_caches")),
        heads(from.integer("num_heads")),
        epsilon(from.number("epsilon")) {
    check_count("num_grown", from.integer("num_grown"), num_blocks, 2, 0);
    check_count("num_weights", from.integer("num_weights"), num_blocks, PER_BLOCK, PER_TRUNK);
    if (num_caches) check_count("num_caches", num_caches, num_blocks, 2, 0); /* else there is no cache yet */
  }
};

static Batch batch_in(Room &room, Batch b) {
  const size_t states = size_t(b.rows) * b.length, ld = stride_of(b.width);
  b.x = room.take<float>(states * ld), b.normed = room.take<float>(states * ld);
  b.context = room.take<float>(states * ld), b.qkv = room.take<float>(states * stride_of(3 * b.width));
  b.inner = room.take<float>(states * stride_of(b.hidden));
  return b;
}

static void extend(const Batch &sizes, const float *x, const Weights &w, const std::vector<float *> &caches,
                   float *hidden) {
  const int num_blocks = w.blocks.size(), ld = stride_of(sizes.width);
  const auto own = [&](Room &room) { return room.take<float>(sizes.slots + LANES); };
  const Parts parts(size_of([&](Room &room) { batch_in(room, sizes); }), size_of(own));
  Room shared = parts.shared();
  const Batch b = batch_in(shared, sizes);
  for (size_t i = 0; i < size_t(b.rows) * b.length; i++) memcpy(b.x + i * ld, x + i * b.width, b.width * sizeof(float));
#pragma omp parallel
  {
    Room room = parts.of_thread();
    float *scores = own(room);
    for (int i = 0; i < num_blocks; i++)
      run_block(&b, &w.blocks[i], i == num_blocks - 1, caches[2 * i], caches[2 * i + 1], scores);
    norm_rows(b.x, b.rows, w.gamma, w.beta, &b, hidden, b.width);
  }
}

static void compute_extend(const Extend &self, Context &context) {
  enum { X, START, REAL, CACHES };
  enum { HIDDEN, GROWN };
  Size rows{"B"}, length{"T"}, slots{"C"}, heads{"H", self.heads}, head_width{"D / H"};
  Widths widths;
  const float *x = context.input<float>(X, "x", {&rows, &length, &widths.width});
  check_heads(self.heads, widths);
  check_places(rows, length, self.heads);
  head_width.value = widths.width / self.heads;
  const int64_t start = *context.input<int32_t>(START, "start", {});
  const bool *real = context.input<bool>(REAL, "real", {&rows, &slots});
  check(length > 0 && start >= 0, "TfppoExtend: there must be a new token, at slot 0 or later");
  check(start + length <= slots, "TfppoExtend: the cache has no slot for every new token");
  const Weights w = weights_from(context, CACHES + self.num_caches, self.num_blocks, widths);
  std::vector<float *> caches(2 * self.num_blocks);
  for (int i = 0; i < int(caches.size()); i++)
    caches[i] = self.num_caches ? context.overwritten<float>(CACHES + i, {i % 2 ? "values" : "keys", i / 2},
                                                             {&rows, &heads, &slots, &head_width}, GROWN + i)
                                : context.output<float>(GROWN + i, TF_FLOAT, {rows, heads, slots, head_width});
  float *hidden = context.output<float>(HIDDEN, TF_FLOAT, {rows, widths.width});
  const Batch sizes = {.rows = int(rows),
                       .length = int(length),
                       .width = int(widths.width),
                       .heads = self.heads,
                       .slots = int(slots),
                       .start = int(start),
                       .hidden = int(widths.inner),
                       .epsilon = self.epsilon,
                       .real = real};
  if (rows > 0) extend(sizes, x, w, caches, hidden);
}

struct Logits {
  int32_t masked;
  float penalty;
  explicit Logits(Attributes &from) : masked(from.integer("masked")), penalty(from.number("penalty")) {}
};

static void compute_logits(const Logits &self, Context &context) {
  Size states{"N"}, width{"D"}, tokens{"V"};
  const float *x = context.input<float>(0, "hidden", {&states, &width});
  const float *e = context.input<float>(1, "embedding", {&tokens, &width});
  check(self.masked >= 0 && self.masked < tokens, "masked is ", self.masked,
        ", wanted is a token below V = ", int64_t(tokens));
  float *logits = context.output<float>(0, TF_FLOAT, {states, tokens});
  const int n = tokens, d = width, rows = states;
  const int group = rows > 8 ? LANES : 8, groups = (rows + group - 1) / group; /* narrow vectors know one size */
  const size_t size = size_t(groups) * d * group;
  const auto own = [&](Room &room) { return room.take<float>(size_of_dots(d)); };
  const Parts parts(size_of([&](Room &room) { room.take<float>(size); }), size_of(own));
  float *transposed = parts.shared().take<float>(size);
  memset(transposed, 0, size * sizeof(float));
  for (int r = 0; r < rows; r++)
    for (int k = 0; k < d; k++) transposed[(size_t(r / group) * d + k) * group + r % group] = x[size_t(r) * d + k];
#pragma omp parallel
  {
    Room room = parts.of_thread();
    float *scratch = own(room);
#pragma omp for schedule(dynamic, 1)
    for (int v = 0; v < n; v += TASK)
      for (int g = 0; g < groups; g++)
        (group == 8 ? dots<vec8> : dots<vec>)(&transposed[size_t(g) * d * group], minimum(group, rows - g * group),
                                              e + size_t(v) * d, minimum(TASK, n - v), d, scratch,
                                              logits + size_t(g) * group * n + v, n);
  }
  for (int r = 0; r < rows; r++) logits[size_t(r) * n + self.masked] += self.penalty;
}

struct Draw {
  float temperature;
  explicit Draw(Attributes &from) : temperature(from.number("temperature")) {
    check(temperature > 0, "temperature is ", temperature, ", wanted is a number above 0");
  }
};

static void compute_draw(const Draw &self, Context &context) {
  const float scale = 1.0f / self.temperature;
  Size rows{"B"}, width{"V"};
  const float *logits = context.input<float>(0, "logits", {&rows, &width});
  const float *uniforms = context.input<float>(1, "uniforms", {&rows});
  check(width > 0, "logits have V = 0 tokens, of which none can be drawn");
  int32_t *tokens = context.output<int32_t>(0, TF_INT32, {rows});
  float *logprobs = context.output<float>(1, TF_FLOAT, {rows});
  const int n = width;
  struct Own {
    float *weights, *sums;
  };
  const auto own = [&](Room &room) { return Own{room.take<float>(n + BLOCK), room.take<float>(n / BLOCK + 1)}; };
  const Parts parts(0, size_of(own));
#pragma omp parallel
  {
    Room room = parts.of_thread();
    const Own mine = own(room);
#pragma omp for schedule(dynamic, 1)
    for (int r = 0; r < int(rows); r++)
      tokens[r] = draw(logits + size_t(r) * n, n, scale, uniforms[r], mine.weights, mine.sums, logprobs + r);
  }
}

static const Registration registration([] {
  define<Extend, compute_extend>(
      "TfppoExtend",
      {"x: float", "start: int32", "real: bool", "caches: num_caches * float", "weights: num_weights * float"},
      {"hidden: float", "grown: num_grown * float"},
      {"num_caches: int >= 0", "num_grown: int >= 2", "num_weights: int >= 1", "num_heads: int", "epsilon: float"});
  define<Logits, compute_logits>("TfppoLogits", {"hidden: float", "embedding: float"}, {"logits: float"},
                                 {"masked: int", "penalty: float"});
  define<Draw, compute_draw>("TfppoDraw", {"logits: float", "uniforms: float"}, {"tokens: int32", "logprobs: float"},
                             {"temperature: float"});
});

}  // namespace

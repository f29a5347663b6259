/* Two TensorFlow operations that train a Transformer on CPUs with products of bfloat16 numbers, by tiles or vectors:

   TfppoTrunk          blocks and final norm over whole sequences, and what the gradient needs of them
   TfppoTrunkGradient  the gradients of their input and weights

   The residual stream, norms, softmaxes and their gradients are float32; what is multiplied is rounded to bfloat16.
   Only real tokens are computed: they lie next to each other, whatever pads surround them. */
#ifdef __AVX512BF16__
#include "blocks.h"
#include "operations.h"

namespace {

struct TrunkAttributes {
  int32_t num_blocks, heads, start;
  float epsilon;
  explicit TrunkAttributes(Attributes &from)
      : num_blocks(from.integer("num_blocks")),
        heads(from.integer("num_heads")),
        start(from.integer("start")),
        epsilon(from.number("epsilon")) {
    check_count("num_weights", from.integer("num_weights"), num_blocks, PER_BLOCK, PER_TRUNK);
  }
};

struct ForwardAttributes : TrunkAttributes {
  bool keep; /* whether there will be a gradient */
  explicit ForwardAttributes(Attributes &from) : TrunkAttributes(from), keep(from.integer("keep")) {}
};

struct GradientAttributes : TrunkAttributes {
  explicit GradientAttributes(Attributes &from) : TrunkAttributes(from) {
    check_count("num_matrices", from.integer("num_matrices"), num_blocks, MATRICES, 0);
    check_count("num_vectors", from.integer("num_vectors"), num_blocks, VECTORS, PER_TRUNK);
  }
};

/* Refuses positions that can't be counted, or not split at `start`. */
static void check_positions(const TrunkAttributes &self, int64_t rows, int64_t length) {
  check(self.start >= 0 && self.start <= length, "start is ", self.start, ", wanted is 0 to T = ", length);
  check_places(rows, length, self.heads);
}

static Trunk trunk_of(const TrunkAttributes &self, const Size &rows, const Size &length, const Widths &widths,
                      const bool *real) {
  return {int(rows),  int(length),       self.start,   int(widths.width),
          self.heads, int(widths.inner), self.epsilon, tokens_of(real, int(rows), int(length), self.start)};
}

/* Hidden states of the queries in [B, T - start, D], of x [B, T, D]; `last` is the last block's output.

   `kept` is of every block; of none where there will be no gradient: then all blocks share one. */
static void forward(const Trunk &t, const Weights &w, std::vector<Kept> kept, const float *x, float *last,
                    float *hidden) {
  const int num_blocks = w.blocks.size();
  const bool is_shared = kept.empty();
  const size_t ld = padded(t.width), wanted = size_t(t.length - t.start) * t.rows * t.width;
  const size_t activated_size = t.num_tokens() * padded(t.inner);
  const size_t shared_size = size_of([&](Room &room) {
    room.take<bf16>(activated_size);
    if (is_shared) kept_in(room, t, false);
  });
  const Parts parts(shared_size, size_of([&](Room &room) { scratch_in(room, t, false); }));
  Room shared = parts.shared();
  bf16 *activated = shared.take<bf16>(activated_size);
  if (is_shared) kept.assign(num_blocks, kept_in(shared, t, false));
  if (wanted) memset(hidden, 0, wanted * sizeof(float));
#pragma omp parallel
  {
    Room room = parts.of_thread();
    const Scratch own = scratch_in(room, t, false);
#pragma omp for schedule(static)
    for (int i = 0; i < t.num_tokens(); i++)
      memcpy(kept[0].x + i * ld, x + size_t(t.tokens.place[i]) * t.width, t.width * sizeof(float));
    for (int i = 0; i < num_blocks; i++)
      block_forward(t, w.blocks[i], kept[i], i == num_blocks - 1, activated, own,
                    i == num_blocks - 1 ? last : kept[i + 1].x);
#pragma omp for schedule(static)
    for (int i = 0; i < t.num_queries(); i++)
      layer_norm(last + i * ld, w.gamma, w.beta, t.width, t.epsilon, hidden + t.state_of(i));
  }
}

/* The gradients of all weights, and dx [B, T, D], of the upstream gradient [B, T - start, D] of the hidden states. */
static void backward(const Trunk &t, const Weights &w, const std::vector<Kept> &kept, const float *last,
                     const float *upstream, const Gradients &to, float *dx) {
  const int num_blocks = kept.size();
  const size_t ld = padded(t.width);
  const Parts parts(size_of([&](Room &room) { backward_in(room, t); }),
                    size_of([&](Room &room) { scratch_in(room, t, true); }));
  Room shared = parts.shared();
  const Backward b = backward_in(shared, t);
#pragma omp parallel
  {
    Room room = parts.of_thread();
    const Scratch own = scratch_in(room, t, true);
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
    norm_gradients(last, t.num_queries(), b.dnormed, w.gamma, t, b.dx, b.parts, to.gamma, to.beta);
    for (int i = num_blocks - 1; i >= 0; i--)
      block_back(t, w.blocks[i], kept[i], i == num_blocks - 1, b, own, to.blocks[i]);
    const size_t row_size = size_t(t.length) * t.width;
#pragma omp for schedule(static)
    for (int row = 0; row < t.rows; row++) {
      if (row_size) memset(dx + row * row_size, 0, row_size * sizeof(float));
      for (int i = t.tokens.first_token[row]; i < t.tokens.first_token[row + 1]; i++)
        memcpy(dx + size_t(t.tokens.place[i]) * t.width, b.dx + i * ld, t.width * sizeof(float));
    }
  }
}

static void compute_trunk(const ForwardAttributes &self, Context &context) {
  enum { X, REAL, WEIGHTS };
  enum { HIDDEN, KEPT };
  const int num_blocks = self.num_blocks;
  Size rows{"B"}, length{"T"};
  Widths widths;
  const float *x = context.input<float>(X, "x", {&rows, &length, &widths.width});
  check_heads(self.heads, widths);
  check_positions(self, rows, length);
  const bool *real = context.input<bool>(REAL, "real", {&rows, &length});
  const Weights w = weights_from(context, WEIGHTS, num_blocks, widths);
  const Trunk t = trunk_of(self, rows, length, widths, real);
  float *hidden = context.output<float>(HIDDEN, TF_FLOAT, {t.rows, t.length - t.start, t.width});
  std::vector<Kept> kept;
  for (int i = 0; i < num_blocks; i++) {
    const auto take = [&](Room &room) { return kept_in(room, t, i == num_blocks - 1); };
    const size_t size = self.keep ? size_of(take) : 0;
    Room room = {context.output<char>(KEPT + i, TF_UINT8, {int64_t(size)})};
    if (self.keep) kept.push_back(take(room));
  }
  float *last = context.output<float>(KEPT + num_blocks, TF_FLOAT, {t.num_queries(), int64_t(padded(t.width))});
  forward(t, w, kept, x, last, hidden);
}

/* Outputs for the gradients of matrices, and for those of vectors. */
static Gradients gradients_to(Context &context, int first_matrix, int first_vector, int num_blocks, Widths &widths) {
  Gradients gradients(num_blocks);
  for_each_weight(
      gradients, widths,
      [&](const Name &, float *&to, Size &size) { to = context.output<float>(first_vector++, TF_FLOAT, {size}); },
      [&](const Name &, bf16 *&to, Size &rows, Size &columns) {
        to = context.output<bf16>(first_matrix++, TF_BFLOAT16, {rows, columns});
      });
  return gradients;
}

static void compute_trunk_gradient(const GradientAttributes &self, Context &context) {
  enum { UPSTREAM, REAL, KEPT };
  enum { DX, DWEIGHTS };
  const int num_blocks = self.num_blocks, last_from = KEPT + num_blocks;
  Size rows{"B"}, length{"T"}, wanted{"T - start"};
  Widths widths;
  const bool *real = context.input<bool>(REAL, "real", {&rows, &length});
  check_positions(self, rows, length);
  wanted.value = length - self.start;
  const float *upstream = context.input<float>(UPSTREAM, "upstream", {&rows, &wanted, &widths.width});
  check_heads(self.heads, widths);
  const Weights w = weights_from(context, last_from + 1, num_blocks, widths);
  const Trunk t = trunk_of(self, rows, length, widths, real);
  std::vector<Kept> kept;
  for (int i = 0; i < num_blocks; i++) {
    const auto take = [&](Room &room) { return kept_in(room, t, i == num_blocks - 1); };
    Size size{"bytes", int64_t(size_of(take))};
    Room room = {const_cast<char *>(context.input<char>(KEPT + i, {"kept", i}, {&size}))}; /* which is only read */
    kept.push_back(take(room));
  }
  Size queries{"queries", t.num_queries()}, ld{"padded D", int64_t(padded(t.width))};
  const float *last = context.input<float>(last_from, "last", {&queries, &ld});
  const Gradients to = gradients_to(context, DWEIGHTS, DWEIGHTS + num_blocks * MATRICES, num_blocks, widths);
  float *dx = context.output<float>(DX, TF_FLOAT, {rows, length, widths.width});
  backward(t, w, kept, last, upstream, to, dx);
}

static const Registration registration([] {
  if (!products_allowed()) return;
  define<ForwardAttributes, compute_trunk>(
      "TfppoTrunk", {"x: float", "real: bool", "weights: num_weights * float"},
      {"hidden: float", "kept: num_blocks * uint8", "last: float"},
      {"num_blocks: int >= 1", "num_weights: int >= 1", "num_heads: int", "start: int", "epsilon: float", "keep: int"});
  define<GradientAttributes, compute_trunk_gradient>(
      "TfppoTrunkGradient",
      {"upstream: float", "real: bool", "kept: num_blocks * uint8", "last: float", "weights: num_weights * float"},
      {"dx: float", "matrices: num_matrices * bfloat16", "vectors: num_vectors * float"},
      {"num_blocks: int >= 1", "num_weights: int >= 1", "num_matrices: int >= 1", "num_vectors: int >= 1",
       "num_heads: int", "start: int", "epsilon: float"});
});

}  // namespace
#endif

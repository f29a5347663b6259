/* A TensorFlow operation that samples with a Transformer on CPUs by products of bfloat16 numbers, by tiles or vectors:

   TfppoExtendRounded  as TfppoExtend, with matrices packed by TfppoPack and a cache of bfloat16

   It rounds what TfppoTrunk rounds: a state's hidden numbers are the same to float32's rounding, but where a number
   lies between two of bfloat16. In the cache, the values of two neighbouring slots lie together, number by number. */
#ifdef __AVX512BF16__
#include "memory.h"
#include "operations.h"
#include "packed.h"
#include "rounded.h"
#include "weights.h"

namespace {

using PackedBlock = BlockOf<const uint32_t *, const float *>;
using PackedWeights = TrunkOf<const uint32_t *, const float *>;

struct Batch {
  int rows, length, width, heads, slots, start, inner; /* of the batch, T, D, H, C, the first slot, of the MLP */
  float epsilon;
  const bool *real;
  float *x = nullptr; /* as all below, rows of `padded` width */
  bf16 *normed = nullptr, *qkv = nullptr, *context = nullptr, *activated = nullptr;
  int head_width() const { return width / heads; }
};

/* A thread's own. */
struct Scratch {
  float *scores, *normed;
  bf16 *weights;
};

static Scratch scratch_in(Room &room, const Batch &b) {
  const size_t slots = size_t(b.slots) + LANES;
  return {room.take<float>(slots), room.take<float>(b.width), room.take<bf16>(slots)};
}

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
static void attend_head(const Batch &b, int row, int head, int first, bf16 *keys, uint32_t *values,
                        const Scratch &own) {
  const int d = b.head_width(), wanted = b.length - first;
  const size_t ld = padded(3 * b.width), before = size_t(row) * b.heads + head;
  const bf16 *qkv = b.qkv + size_t(row) * b.length * ld + head * d;
  keys += before * even(b.slots) * d, values += before * even(b.slots) / 2 * d;
  for (int t = 0; t < b.length; t++) {
    memcpy(keys + size_t(b.start + t) * d, qkv + t * ld + b.width, d * sizeof(bf16));
    write_value(qkv + t * ld + 2 * b.width, b.start + t, d, values);
  }
  for (int t = first; t < b.length; t++) {
    const size_t to = size_t(row) * wanted + t - first;
    if (head == 0) clear_end(b.context + to * padded(b.width), b.width);
    attend(qkv + t * ld, keys, values, b.real + size_t(row) * b.slots, b.start + t + 1, d, 1.0f / sqrtf(d), own.scores,
           own.weights, b.context + to * padded(b.width) + head * d);
  }
}

/* One block over the states b.x; of the last block, the last position of each row alone, which moves to the front. */
static void run_block(const Batch &b, const PackedBlock &w, bool is_last, bf16 *keys, bf16 *values,
                      const Scratch &own) {
  const int all = b.rows * b.length, first = is_last ? b.length - 1 : 0, rows = b.rows * (b.length - first);
  const int d = b.width;
  const size_t ld = padded(d), ld3 = padded(3 * d), ldi = padded(b.inner);
  const auto to_residual = [&](int r, int j, vec low, vec high) {
    float *x = b.x + r * ld + j;
    store_panel(x, load(x) + low, load(x + LANES) + high);
  };
  norm_rows(b.x, all, w.norm1_gamma, w.norm1_beta, d, b.epsilon, own.normed, b.normed);
  project(b.normed, all, d, w.qkv, 3 * d, w.qkv_bias,
          [&](int r, int j, vec low, vec high) { store_panel(b.qkv + r * ld3 + j, low, high); });
#pragma omp for schedule(dynamic, 1)
  for (int i = 0; i < b.rows * b.heads; i++)
    attend_head(b, i / b.heads, i % b.heads, first, keys, (uint32_t *)values, own);
  if (is_last && b.length > 1) {
#pragma omp single
    for (int r = 0; r < b.rows; r++)
      memmove(b.x + r * ld, b.x + (size_t(r) * b.length + first) * ld, d * sizeof(float));
  }
  project(b.context, rows, d, w.out, d, w.out_bias, to_residual);
  norm_rows(b.x, rows, w.norm2_gamma, w.norm2_beta, d, b.epsilon, own.normed, b.normed);
  project(b.normed, rows, d, w.in, b.inner, w.in_bias, [&](int r, int j, vec low, vec high) {
    store_panel(b.activated + r * ldi + j, gelu_of(low), gelu_of(high));
  });
  project(b.activated, rows, b.inner, w.back, d, w.back_bias, to_residual);
}

static Batch batch_in(Room &room, Batch b) {
  const size_t states = size_t(b.rows) * b.length, ld = padded(b.width);
  b.x = room.take<float>(states * ld);
  b.normed = room.take<bf16>(states * ld), b.context = room.take<bf16>(states * ld);
  b.qkv = room.take<bf16>(states * padded(3 * b.width)), b.activated = room.take<bf16>(states * padded(b.inner));
  return b;
}

static void extend(const Batch &sizes, const float *x, const PackedWeights &w, const std::vector<bf16 *> &caches,
                   float *hidden) {
  const int num_blocks = w.blocks.size();
  const size_t ld = padded(sizes.width);
  const Parts parts(size_of([&](Room &room) { batch_in(room, sizes); }),
                    size_of([&](Room &room) { scratch_in(room, sizes); }));
  Room shared = parts.shared();
  const Batch b = batch_in(shared, sizes);
#pragma omp parallel
  {
    Room room = parts.of_thread();
    const Scratch own = scratch_in(room, b);
#pragma omp for schedule(static)
    for (int i = 0; i < b.rows * b.length; i++) memcpy(b.x + i * ld, x + size_t(i) * b.width, b.width * sizeof(float));
    for (int i = 0; i < num_blocks; i++)
      run_block(b, w.blocks[i], i == num_blocks - 1, caches[2 * i], caches[2 * i + 1], own);
#pragma omp for schedule(static)
    for (int r = 0; r < b.rows; r++)
      layer_norm(b.x + r * ld, w.gamma, w.beta, b.width, b.epsilon, hidden + size_t(r) * b.width);
  }
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
    check_count("num_matrices", from.integer("num_matrices"), num_blocks, MATRICES, 0);
    check_count("num_vectors", from.integer("num_vectors"), num_blocks, VECTORS, PER_TRUNK);
    if (num_caches) check_count("num_caches", num_caches, num_blocks, 2, 0); /* else there is no cache yet */
  }
};

/* The weights of inputs, from two of them on; the vectors first, which tell the inner width. */
static PackedWeights packed_weights_from(Context &context, int matrix, int vector, int num_blocks, Widths &widths) {
  PackedWeights weights(num_blocks);
  const auto no_vector = [](const Name &, const float *&, Size &) {};
  const auto no_matrix = [](const Name &, const uint32_t *&, Size &, Size &) {};
  const auto read_vector = [&](const Name &name, const float *&to, Size &size) {
    to = context.input<float>(vector++, name, {&size});
  };
  const auto read_matrix = [&](const Name &name, const uint32_t *&to, Size &rows, Size &columns) {
    to = packed_matrix(context, matrix++, name, rows, columns);
  };
  for_each_weight(weights, widths, read_vector, no_matrix);
  for_each_weight(weights, widths, no_vector, read_matrix);
  return weights;
}

static void compute_extend(const Extend &self, Context &context) {
  enum { X, START, REAL, CACHES };
  enum { HIDDEN, GROWN };
  Size rows{"B"}, length{"T"}, slots{"C"}, even_slots{"even C"}, heads{"H", self.heads}, head_width{"D / H"};
  Widths widths;
  const float *x = context.input<float>(X, "x", {&rows, &length, &widths.width});
  check_heads(self.heads, widths);
  check_places(rows, length, self.heads);
  head_width.value = widths.width / self.heads;
  const int64_t start = *context.input<int32_t>(START, "start", {});
  const bool *real = context.input<bool>(REAL, "real", {&rows, &slots});
  even_slots.value = even(slots);
  check(length > 0 && start >= 0, "TfppoExtendRounded: there must be a new token, at slot 0 or later");
  check(start + length <= slots, "TfppoExtendRounded: the cache has no slot for every new token");
  const int matrix = CACHES + self.num_caches, vector = matrix + MATRICES * self.num_blocks;
  const PackedWeights w = packed_weights_from(context, matrix, vector, self.num_blocks, widths);
  std::vector<bf16 *> caches(2 * self.num_blocks);
  for (int i = 0; i < int(caches.size()); i++)
    caches[i] = self.num_caches ? context.overwritten<bf16>(CACHES + i, {i % 2 ? "values" : "keys", i / 2},
                                                            {&rows, &heads, &even_slots, &head_width}, GROWN + i)
                                : context.output<bf16>(GROWN + i, TF_BFLOAT16, {rows, heads, even_slots, head_width});
  float *hidden = context.output<float>(HIDDEN, TF_FLOAT, {rows, widths.width});
  const Batch sizes = {.rows = int(rows),
                       .length = int(length),
                       .width = int(widths.width),
                       .heads = self.heads,
                       .slots = int(slots),
                       .start = int(start),
                       .inner = int(widths.inner),
                       .epsilon = self.epsilon,
                       .real = real};
  if (rows > 0) extend(sizes, x, w, caches, hidden);
}

static const Registration registration([] {
  if (!products_allowed()) return;
  define<Extend, compute_extend>("TfppoExtendRounded",
                                 {"x: float", "start: int32", "real: bool", "caches: num_caches * bfloat16",
                                  "matrices: num_matrices * bfloat16", "vectors: num_vectors * float"},
                                 {"hidden: float", "grown: num_grown * bfloat16"},
                                 {"num_caches: int >= 0", "num_grown: int >= 2", "num_matrices: int >= 1",
                                  "num_vectors: int >= 1", "num_heads: int", "epsilon: float"});
});

}  // namespace
#endif

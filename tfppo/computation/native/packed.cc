/* Two TensorFlow operations for matrices of bfloat16 numbers that are packed once and multiplied often:

   TfppoPack           a matrix as TfppoExtendRounded and TfppoLogitsRounded read it
   TfppoLogitsRounded  as TfppoLogits, with the packed transpose of the token embedding */
#ifdef __AVX512BF16__
#include "packed.h"

#include "memory.h"
#include "operations.h"
#include "rounded.h"

namespace {

struct Logits {
  int32_t num_tokens, masked;
  float penalty;
  explicit Logits(Attributes &from)
      : num_tokens(from.integer("num_tokens")), masked(from.integer("masked")), penalty(from.number("penalty")) {
    check(num_tokens <= LARGEST, "num_tokens is ", num_tokens, ", wanted are at most ", LARGEST);
    check(masked >= 0 && masked < num_tokens, "masked is ", masked,
          ", wanted is a token below num_tokens = ", num_tokens);
  }
};

static void compute_logits(const Logits &self, Context &context) {
  Size states{"N"}, width{"D"};
  const float *x = context.input<float>(0, "hidden", {&states, &width});
  const uint32_t *e = packed_matrix(context, 1, "embedding", width, self.num_tokens);
  float *logits = context.output<float>(0, TF_FLOAT, {states, self.num_tokens});
  const int n = self.num_tokens, rows = states, d = width, pairs = pairs_of(d);
  std::vector<bf16> rounded(rows * padded(d));
  for (int r = 0; r < rows; r++) round_row(x + size_t(r) * d, d, &rounded[r * padded(d)]);
  {
    const std::lock_guard<std::mutex> lock(cores);
#pragma omp parallel for schedule(dynamic, 4)
    for (int panel = 0; panel < panels_of(n); panel++) {
      float *to = logits + size_t(panel) * PANEL;
      multiply_rows(by_rows(rounded.data(), padded(d)), 0, rows, e + panel * panel_size(pairs), pairs,
                    [&](int r, vec low, vec high) { store_panel(to + size_t(r) * n, low, high, n - panel * PANEL); });
    }
  }
  for (int r = 0; r < rows; r++) logits[size_t(r) * n + self.masked] += self.penalty;
}

struct Pack {
  bool transposed;
  explicit Pack(Attributes &from) : transposed(from.integer("transposed")) {}
};

static void compute_pack(const Pack &self, Context &context) {
  Size rows{"rows"}, columns{"columns"};
  const float *matrix = context.input<float>(0, "matrix", {&rows, &columns});
  const int k = self.transposed ? columns : rows, n = self.transposed ? rows : columns;
  const int panels = panels_of(n), pairs = pairs_of(k);
  auto *packed =
      reinterpret_cast<uint32_t *>(context.output<bf16>(0, TF_BFLOAT16, {panels, pairs, 2 * int64_t(PANEL)}));
  const auto own = [&](Room &room) { return room.take<uint32_t>(panel_size(pairs + LANES)); };
  const Parts parts(0, size_of(own));
#pragma omp parallel
  {
    Room room = parts.of_thread();
    uint32_t *turned = own(room); /* pack_transposed writes whole groups of pairs */
#pragma omp for schedule(dynamic, 4)
    for (int panel = 0; panel < panels; panel++) {
      const int j = panel * PANEL;
      uint32_t *to = packed + panel * panel_size(pairs);
      if (self.transposed) {
        pack_transposed(matrix + size_t(j) * k, k, minimum(PANEL, n - j), k, turned);
        memcpy(to, turned, panel_size(pairs) * sizeof(uint32_t));
      } else {
        pack_rows(matrix + j, n, k, n - j, to);
      }
    }
  }
}

static const Registration registration([] {
  if (!products_allowed()) return;
  define<Logits, compute_logits>("TfppoLogitsRounded", {"hidden: float", "embedding: bfloat16"}, {"logits: float"},
                                 {"num_tokens: int", "masked: int", "penalty: float"});
  define<Pack, compute_pack>("TfppoPack", {"matrix: float"}, {"packed: bfloat16"}, {"transposed: int"});
});

}  // namespace
#endif

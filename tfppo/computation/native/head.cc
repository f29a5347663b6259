/* Two TensorFlow operations for the log-probabilities of chosen tokens, by products of bfloat16 numbers:

   TfppoHead          of hidden states and the token embedding: log-probabilities and entropies of their tokens
   TfppoHeadGradient  the gradients of states and embedding

   Sums and softmax are float32 and come from each panel of logits as it is computed. For the gradient, logits are kept
   as float16, less a float32 number near them, of which there is one for every group of a row; the chosen token's own
   log-probability is kept in float32. What leaves them is bfloat16. */
#ifdef __AVX512BF16__
#include "memory.h"
#include "operations.h"
#include "rounded.h"

namespace {

constexpr int GROUP = 8; /* panels whose softmax is summed together, so that threads don't matter */

/* Numbers x of a row, of which the largest is `most`: the sums of exp(x - most), and of (x - most) times that. */
struct Softmax {
  float most, sum, moment;
};
struct Softmaxes { /* lane by lane; base: what the logits that are kept are counted from */
  vec most, sum, moment;
  float base;
};

const float LOWEST = -1e30f;

INLINE vec weight_of(vec x) { return x < -87.0f ? (vec){} : exp_of(x); } /* below, nothing that float32 can tell */
INLINE vec larger(vec a, vec b) { return a > b ? a : b; }

/* Makes the largest number one that is at least as large. */
INLINE void rebase(Softmaxes &s, vec most) {
  const vec down = s.most - most, factor = weight_of(down);
  s.moment = factor * (s.moment + (factor == 0.0f ? (vec){} : down) * s.sum);
  s.sum *= factor, s.most = most;
}

INLINE void add(Softmaxes &s, vec low, vec high) {
  rebase(s, larger(s.most, larger(low, high)));
  low -= s.most, high -= s.most;
  const vec of_low = weight_of(low), of_high = weight_of(high);
  s.sum += of_low + of_high, s.moment += low * of_low + high * of_high;
}

/* The softmax of all lanes' numbers together. */
static Softmax merged(Softmaxes s) {
  const float most = _mm512_reduce_max_ps((__m512)s.most);
  rebase(s, (vec){} + most);
  return {most, sum_of(s.sum), sum_of(s.moment)};
}

struct Head {
  float temperature, penalty;
  int32_t masked;
  bool keep;
  explicit Head(Attributes &from)
      : temperature(from.number("temperature")),
        penalty(from.number("penalty")),
        masked(from.integer("masked")),
        keep(from.integer("keep")) {
    check(temperature > 0, "temperature is ", temperature, ", wanted is a number above 0");
  }
};

/* Sizes: of states [N, D] and embedding [V, D]. */
struct Sizes {
  int rows, width, tokens;
  int groups() const { return (panels_of(tokens) + GROUP - 1) / GROUP; }
};

/* 16 logits, divided by the temperature, as the softmax takes them: the masked one lowered, and none beyond the last.
 */
INLINE vec prepared(vec logits, int first, const Head &self, int tokens, float scale) {
  if (self.masked >= first && self.masked < first + LANES) logits[self.masked - first] += self.penalty;
  const __m512 none = _mm512_set1_ps(LOWEST);
  return (vec)_mm512_mask_mov_ps(none, first_lanes(tokens - first), (__m512)(logits * scale));
}

/* What a group's logits are counted from: the largest of its first panel. */
INLINE float base_of(vec low, vec high) { return _mm512_reduce_max_ps((__m512)larger(low, high)); }

INLINE void store_half(uint16_t *to, vec x) {
  _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE vec load_half(const uint16_t *from) { return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }

/* Of each row, what the gradient needs again: log(sum(exp(logits))), logits [N, padded(V)], their bases [N, groups]. */
template <typename T>
struct RowsOf {
  T *totals, *bases;
  uint16_t *kept; /* may be null */
};

/* logprobs and entropies [N] of the tokens, and `to`. */
static void forward(const Head &self, const Sizes &s, const float *x, const float *e, const int32_t *tokens,
                    float *logprobs, float *entropies, const RowsOf<float> &to) {
  const int d = s.width, pairs = pairs_of(d), groups = s.groups();
  const float scale = 1.0f / self.temperature;
  struct Shared {
    bf16 *rounded;
    Softmax *parts;
  };
  struct Own {
    uint32_t *panel;
    Softmaxes *rows;
  };
  const auto take_shared = [&](Room &room) {
    return Shared{room.take<bf16>(s.rows * padded(d)), room.take<Softmax>(size_t(groups) * s.rows)};
  };
  const auto take_own = [&](Room &room) {
    return Own{room.take<uint32_t>(panel_size(pairs + LANES)), room.take<Softmaxes>(s.rows)};
  };
  const Parts memory(size_of(take_shared), size_of(take_own));
  Room shared = memory.shared();
  const Shared all = take_shared(shared);
  bf16 *const rounded = all.rounded;
  Softmax *const parts = all.parts;
#pragma omp parallel
  {
    Room room = memory.of_thread();
    const Own own = take_own(room);
    uint32_t *const panel = own.panel;
    Softmaxes *const rows = own.rows;
    round_rows(x, d, s.rows, d, rounded);
#pragma omp for schedule(static)
    for (int r = 0; r < s.rows; r++) logprobs[r] = NAN; /* of a token that is none */
#pragma omp for schedule(dynamic, 1)
    for (int group = 0; group < groups; group++) {
      for (int r = 0; r < s.rows; r++) rows[r] = {(vec){} + LOWEST, (vec){}, (vec){}, 0};
      for (int j = group * GROUP * PANEL; j < minimum(s.tokens, (group + 1) * GROUP * PANEL); j += PANEL) {
        pack_transposed(e + size_t(j) * d, d, minimum(PANEL, s.tokens - j), d, panel);
        multiply_rows(by_rows(rounded, padded(d)), 0, s.rows, panel, pairs, [&](int r, vec low, vec high) {
          low = prepared(low, j, self, s.tokens, scale), high = prepared(high, j + LANES, self, s.tokens, scale);
          const int chosen = tokens[r] - j;
          if (chosen >= 0 && chosen < PANEL) logprobs[r] = chosen < LANES ? low[chosen] : high[chosen - LANES];
          add(rows[r], low, high);
          if (!to.kept) return;
          if (j % (GROUP * PANEL) == 0) rows[r].base = base_of(low, high);
          uint16_t *half = to.kept + r * padded(s.tokens) + j;
          store_half(half, low - rows[r].base), store_half(half + LANES, high - rows[r].base);
        });
      }
      for (int r = 0; r < s.rows; r++) {
        parts[size_t(r) * groups + group] = merged(rows[r]);
        if (to.kept) to.bases[size_t(r) * groups + group] = rows[r].base;
      }
    }
#pragma omp for schedule(static)
    for (int r = 0; r < s.rows; r++) {
      const Softmax *mine = parts + size_t(r) * groups;
      float most = LOWEST;
      double sum = 0, moment = 0;
      for (int i = 0; i < groups; i++) most = fmaxf(most, mine[i].most);
      for (int i = 0; i < groups; i++) {
        const double down = double(mine[i].most) - most, factor = exp(down);
        sum += factor * mine[i].sum, moment += factor * (mine[i].moment + down * mine[i].sum);
      }
      to.totals[r] = most + float(log(sum));
      logprobs[r] = logprobs[r] - to.totals[r], entropies[r] = log(sum) - moment / sum;
    }
  }
}

/* The chosen tokens, their log-probabilities and entropies, and the gradients of both. */
struct Chosen {
  const int32_t *tokens;
  const float *logprobs, *entropies, *dlogprobs, *dentropies;
};

/* Of one row, the logits' gradients, in place of what was kept of them: (bfloat16) from (float16). */
static void logit_gradients(const Head &self, const Sizes &s, const Chosen &chosen, const RowsOf<const float> &from,
                            int row) {
  const float scale = 1.0f / self.temperature, total = from.totals[row], entropy = chosen.entropies[row];
  const float dlogprob = chosen.dlogprobs[row], dentropy = chosen.dentropies[row];
  const float *bases = from.bases + size_t(row) * s.groups();
  const int token = chosen.tokens[row];
  uint16_t *kept = from.kept + row * padded(s.tokens);
  for (int j = 0; j < s.tokens; j += LANES) {
    vec log_p = load_half(kept + j) + (bases[j / (GROUP * PANEL)] - total);
    if (token >= j && token < j + LANES) log_p[token - j] = chosen.logprobs[row];
    const vec p = weight_of(log_p);
    const vec finite = p == 0.0f ? (vec){} : log_p;
    vec gradient = -p * (dlogprob + dentropy * (finite + entropy));
    if (token >= j && token < j + LANES) gradient[token - j] += dlogprob;
    store_rounded(kept + j, gradient * scale);
  }
  clear_end(kept, s.tokens);
}

/* How many tokens' part of dx is added up at a time: of all rows, their logits' gradients stay in a core's cache. */
static int chunk_of(int rows) {
  const int tokens = (1 << 19) / (rows ? rows : 1) / PANEL * PANEL;
  return tokens < 8 * PANEL ? 8 * PANEL : minimum(tokens, 128 * PANEL);
}

/* dx [N, D] and de [V, D], of the gradients of log-probabilities and entropies; overwrites what was kept. */
static void backward(const Head &self, const Sizes &s, const float *x, const float *e, const Chosen &chosen,
                     const RowsOf<const float> &from, float *dx, float *de) {
  const int d = s.width, panels = panels_of(d), pairs = pairs_of(s.rows), chunk = chunk_of(s.rows);
  const size_t ldv = padded(s.tokens), ldn = padded(s.rows);
  uint16_t *kept = from.kept;
  struct Shared {
    bf16 *rounded;
    uint32_t *packed;
  };
  struct Own {
    uint32_t *panel;
    bf16 *turned;
  };
  const auto take_shared = [&](Room &room) {
    return Shared{room.take<bf16>(s.rows * padded(d)), room.take<uint32_t>(panels * panel_size(pairs))};
  };
  const auto take_own = [&](Room &room) {
    return Own{room.take<uint32_t>(panel_size(pairs_of(chunk))), room.take<bf16>(PANEL * ldn)};
  };
  const Parts memory(size_of(take_shared), size_of(take_own));
  Room shared = memory.shared();
  const Shared all = take_shared(shared);
  bf16 *const rounded = all.rounded;
  uint32_t *const packed = all.packed;
#pragma omp parallel
  {
    Room room = memory.of_thread();
    const Own own = take_own(room);
    uint32_t *const panel = own.panel;
    bf16 *const turned = own.turned;
    round_rows(x, d, s.rows, d, rounded);
#pragma omp for schedule(static) nowait
    for (int j = 0; j < d; j += PANEL)
      pack_rows(rounded + j, padded(d), s.rows, d - j, packed + j / PANEL * panel_size(pairs));
#pragma omp for schedule(static)
    for (int r = 0; r < s.rows; r++) logit_gradients(self, s, chosen, from, r);
#pragma omp for schedule(dynamic, 4) nowait
    for (int v = 0; v < s.tokens; v += PANEL) {
      const int here = minimum(PANEL, s.tokens - v);
      for (int i = 0; i < here; i += LANES) turn_columns(kept + v + i, ldv, s.rows, here - i, turned + i * ldn, ldn);
      if (v + PANEL < s.tokens) /* what is turned next lies too far apart for the processor to foresee */
        for (int r = 0; r < s.rows; r++) __builtin_prefetch(kept + r * ldv + v + PANEL);
      for (int j = 0; j < d; j += PANEL)
        multiply_rows(by_rows(turned, ldn), 0, here, packed + j / PANEL * panel_size(pairs), pairs,
                      [&](int i, vec low, vec high) { store_panel(de + size_t(v + i) * d + j, low, high, d - j); });
    }
    const Tasks tasks(s.rows, d);
    for (int v = 0; v < s.tokens; v += chunk) {
      const int here = minimum(chunk, s.tokens - v);
#pragma omp for schedule(static) nowait /* a thread has the same sums in every chunk */
      for (int task = 0; task < tasks.count(); task++) {
        const int j = tasks.panel(task);
        pack_rows(e + size_t(v) * d + j, d, here, d - j, panel);
        multiply_rows(by_rows(kept + v, ldv), tasks.first(task), tasks.end(task), panel, pairs_of(here),
                      [&](int r, vec low, vec high) {
                        float *to = dx + size_t(r) * d + j;
                        if (v) low += load_some(to, d - j), high += load_some(to + LANES, d - j - LANES);
                        store_panel(to, low, high, d - j);
                      });
      }
    }
  }
}

/* The inputs that both operations have. */
struct States {
  const float *x, *e;
  const int32_t *tokens;
  Size rows{"N"}, width{"D"}, vocabulary{"V"};
  States(const Head &self, Context &context) {
    x = context.input<float>(0, "hidden", {&rows, &width});
    e = context.input<float>(1, "embedding", {&vocabulary, &width}, "states and embedding have different widths");
    tokens = context.input<int32_t>(2, "tokens", {&rows}, "there must be a token for every state");
    check(self.masked >= 0 && self.masked < vocabulary, "masked is ", self.masked,
          ", wanted is a token below V = ", int64_t(vocabulary));
  }
  Sizes sizes() const { return {int(rows), int(width), int(vocabulary)}; }
};

static void compute_head(const Head &self, Context &context) {
  enum { LOGPROBS, ENTROPIES, TOTALS, BASES, KEPT };
  const States states(self, context);
  const Sizes s = states.sizes();
  const int64_t kept_rows = self.keep ? s.rows : 0;
  float *logprobs = context.output<float>(LOGPROBS, TF_FLOAT, {s.rows});
  float *entropies = context.output<float>(ENTROPIES, TF_FLOAT, {s.rows});
  RowsOf<float> rows = {};
  rows.totals = context.output<float>(TOTALS, TF_FLOAT, {s.rows});
  rows.bases = context.output<float>(BASES, TF_FLOAT, {kept_rows, s.groups()});
  rows.kept = context.output<uint16_t>(KEPT, TF_HALF, {kept_rows, int64_t(padded(s.tokens))});
  if (!self.keep) rows.kept = nullptr;
  forward(self, s, states.x, states.e, states.tokens, logprobs, entropies, rows);
}

static void compute_head_gradient(const Head &self, Context &context) {
  enum { LOGPROBS = 3, ENTROPIES, DLOGPROBS, DENTROPIES, TOTALS, BASES, KEPT };
  enum { DX, DE, ROOM };
  States states(self, context);
  const Sizes s = states.sizes();
  Size groups{"groups", s.groups()}, padded_tokens{"padded V", int64_t(padded(s.tokens))};
  const auto of_rows = [&](int n, const char *name) { return context.input<float>(n, name, {&states.rows}); };
  const Chosen chosen = {states.tokens, of_rows(LOGPROBS, "logprobs"), of_rows(ENTROPIES, "entropies"),
                         of_rows(DLOGPROBS, "dlogprobs"), of_rows(DENTROPIES, "dentropies")};
  const RowsOf<const float> from = {of_rows(TOTALS, "totals"),
                                    context.input<float>(BASES, "bases", {&states.rows, &groups}),
                                    context.overwritten<uint16_t>(KEPT, "kept", {&states.rows, &padded_tokens}, ROOM)};
  float *dx = context.output<float>(DX, TF_FLOAT, {s.rows, s.width});
  float *de = context.output<float>(DE, TF_FLOAT, {s.tokens, s.width});
  backward(self, s, states.x, states.e, chosen, from, dx, de);
}

static const Registration registration([] {
  if (!products_allowed()) return;
  const auto attributes = {"temperature: float", "penalty: float", "masked: int", "keep: int"};
  define<Head, compute_head>("TfppoHead", {"hidden: float", "embedding: float", "tokens: int32"},
                             {"logprobs: float", "entropies: float", "totals: float", "bases: float", "kept: half"},
                             attributes);
  define<Head, compute_head_gradient>(
      "TfppoHeadGradient",
      {"hidden: float", "embedding: float", "tokens: int32", "logprobs: float", "entropies: float", "dlogprobs: float",
       "dentropies: float", "totals: float", "bases: float", "kept: half"},
      {"dhidden: float", "dembedding: float", "room: half"}, attributes);
});

}  // namespace
#endif

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

enum { GROUP = 8 }; /* panels whose softmax is summed together, so that threads don't matter */

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
  int32_t masked, keep;
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    attribute(construction, "temperature", &temperature, status), attribute(construction, "penalty", &penalty, status);
    attribute(construction, "masked", &masked, status), attribute(construction, "keep", &keep, status);
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
struct Rows {
  float *totals, *bases;
  uint16_t *kept; /* may be null */
};

/* logprobs and entropies [N] of the tokens, and `to`. */
static void forward(const Head &self, const Sizes &s, const float *x, const float *e, const int32_t *tokens,
                    float *logprobs, float *entropies, const Rows &to, TF_Status *status) {
  const int d = s.width, pairs = pairs_of(d), groups = s.groups();
  const size_t own = panel_size(pairs + LANES) * sizeof(uint32_t) + s.rows * sizeof(Softmaxes) + 64;
  const float scale = 1.0f / self.temperature;
  Room sizes = {nullptr};
  sizes.take<bf16>(s.rows * padded(d)), sizes.take<Softmax>(size_t(groups) * s.rows);
  const Region region(sizes.size + (own + 64) * omp_get_max_threads(), status);
  if (!region.at) return;
  Room shared = {region.at};
  bf16 *rounded = shared.take<bf16>(s.rows * padded(d));
  Softmax *parts = shared.take<Softmax>(size_t(groups) * s.rows);
#pragma omp parallel
  {
    Room room = {shared.at + shared.size + (own + 64) / 64 * 64 * omp_get_thread_num()};
    uint32_t *panel = room.take<uint32_t>(panel_size(pairs + LANES));
    Softmaxes *rows = room.take<Softmaxes>(s.rows);
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
static void logit_gradients(const Head &self, const Sizes &s, const Chosen &chosen, const Rows &from, int row) {
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
                     const Rows &from, float *dx, float *de, TF_Status *status) {
  const int d = s.width, panels = panels_of(d), pairs = pairs_of(s.rows), chunk = chunk_of(s.rows);
  const size_t ldv = padded(s.tokens), ldn = padded(s.rows);
  uint16_t *kept = from.kept;
  const auto own = [&](Room &room, uint32_t **panel, bf16 **turned) {
    *panel = room.take<uint32_t>(panel_size(pairs_of(chunk))), *turned = room.take<bf16>(int(PANEL) * ldn);
  };
  uint32_t *panel;
  bf16 *turned;
  Room each = {nullptr}, sizes = {nullptr};
  own(each, &panel, &turned);
  sizes.take<bf16>(s.rows * padded(d)), sizes.take<uint32_t>(panels * panel_size(pairs));
  const Region region(sizes.size + each.size * omp_get_max_threads(), status);
  if (!region.at) return;
  Room shared = {region.at};
  bf16 *rounded = shared.take<bf16>(s.rows * padded(d));
  uint32_t *packed = shared.take<uint32_t>(panels * panel_size(pairs));
#pragma omp parallel private(panel, turned)
  {
    Room room = {shared.at + shared.size + each.size * omp_get_thread_num()};
    own(room, &panel, &turned);
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

/* The sizes of states, embedding and their tokens, which must fit each other. */
static Sizes checked(const int64_t *x_dims, const int64_t *e_dims, int64_t num_tokens, TF_Status *status) {
  check(x_dims[1] == e_dims[1], "TfppoHead: states and embedding have different widths", status);
  check(x_dims[0] == num_tokens, "TfppoHead: there must be a token for every state", status);
  return {int(x_dims[0]), int(x_dims[1]), int(e_dims[0])};
}

static void compute_head(void *kernel, TF_OpKernelContext *context) {
  enum { LOGPROBS, ENTROPIES, TOTALS, BASES, KEPT };
  const Head *self = static_cast<const Head *>(kernel);
  TF_Status *status = TF_NewStatus();
  int64_t x_dims[2] = {}, e_dims[2] = {}, num_tokens = 0;
  const float *x = input<float>(context, 0, x_dims, status), *e = input<float>(context, 1, e_dims, status);
  const int32_t *tokens = input<int32_t>(context, 2, &num_tokens, status);
  const Sizes s = checked(x_dims, e_dims, num_tokens, status);
  const int64_t kept_rows = self->keep ? s.rows : 0;
  float *logprobs = output<float>(context, LOGPROBS, TF_FLOAT, {s.rows}, status);
  float *entropies = output<float>(context, ENTROPIES, TF_FLOAT, {s.rows}, status);
  Rows rows = {};
  rows.totals = output<float>(context, TOTALS, TF_FLOAT, {s.rows}, status);
  rows.bases = output<float>(context, BASES, TF_FLOAT, {kept_rows, s.groups()}, status);
  rows.kept = output<uint16_t>(context, KEPT, TF_HALF, {kept_rows, int64_t(padded(s.tokens))}, status);
  if (!self->keep) rows.kept = nullptr;
  if (TF_GetCode(status) == TF_OK) forward(*self, s, x, e, tokens, logprobs, entropies, rows, status);
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  TF_DeleteStatus(status);
}

static void compute_head_gradient(void *kernel, TF_OpKernelContext *context) {
  enum { X, E, TOKENS, LOGPROBS, ENTROPIES, DLOGPROBS, DENTROPIES, TOTALS, BASES, KEPT };
  enum { DX, DE, ROOM };
  const Head *self = static_cast<const Head *>(kernel);
  TF_Status *status = TF_NewStatus();
  int64_t x_dims[2] = {}, e_dims[2] = {}, num_tokens = 0;
  const float *x = input<float>(context, X, x_dims, status), *e = input<float>(context, E, e_dims, status);
  Chosen chosen = {input<int32_t>(context, TOKENS, &num_tokens, status)};
  const float *of_rows[BASES + 1];
  for (int i = LOGPROBS; i <= BASES; i++) of_rows[i] = input<float>(context, i, nullptr, status);
  chosen.logprobs = of_rows[LOGPROBS], chosen.entropies = of_rows[ENTROPIES];
  chosen.dlogprobs = of_rows[DLOGPROBS], chosen.dentropies = of_rows[DENTROPIES];
  const Sizes s = checked(x_dims, e_dims, num_tokens, status);
  const Rows from = {const_cast<float *>(of_rows[TOTALS]), const_cast<float *>(of_rows[BASES]),
                     overwritten<uint16_t>(context, KEPT, ROOM, TF_HALF, {s.rows, int64_t(padded(s.tokens))}, status)};
  float *dx = output<float>(context, DX, TF_FLOAT, {x_dims[0], x_dims[1]}, status);
  float *de = output<float>(context, DE, TF_FLOAT, {e_dims[0], e_dims[1]}, status);
  if (TF_GetCode(status) == TF_OK) backward(*self, s, x, e, chosen, from, dx, de, status);
  if (TF_GetCode(status) != TF_OK) TF_OpKernelContext_Failure(context, status);
  TF_DeleteStatus(status);
}

}  // namespace

__attribute__((constructor)) static void register_head_ops(void) {
  if (!products_allowed()) return;
  const char *const attrs[] = {"temperature: float", "penalty: float", "masked: int", "keep: int", nullptr};
  const char *const head_in[] = {"hidden: float", "embedding: float", "tokens: int32", nullptr};
  const char *const head_out[] = {"logprobs: float", "entropies: float", "totals: float",
                                  "bases: float",    "kept: half",       nullptr};
  define<Head>("TfppoHead", head_in, head_out, attrs, compute_head);
  const char *const gradient_in[] = {"hidden: float",
                                     "embedding: float",
                                     "tokens: int32",
                                     "logprobs: float",
                                     "entropies: float",
                                     "dlogprobs: float",
                                     "dentropies: float",
                                     "totals: float",
                                     "bases: float",
                                     "kept: half",
                                     nullptr};
  const char *const gradient_out[] = {"dhidden: float", "dembedding: float", "room: half", nullptr};
  define<Head>("TfppoHeadGradient", gradient_in, gradient_out, attrs, compute_head_gradient);
}
#endif

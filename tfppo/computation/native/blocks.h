/* A block of a Transformer, and its gradients. */
#ifndef TFPPO_BLOCKS_H
#define TFPPO_BLOCKS_H

#include "attention.h"
#include "gradients.h"
#include "weights.h"

/* The gradients of a block's weights, of which those of matrices are bfloat16. */
using BlockGradients = BlockOf<bf16 *, float *>;
using Gradients = TrunkOf<bf16 *, float *>;

/* A thread's own: a panel of the widest matrix, a row, and a head of the longest row. */
struct Scratch {
  uint32_t *panel;
  float *normed;
  Head head;
};

static Scratch scratch_in(Room &room, const Trunk &t, bool with_gradient) {
  const int deepest = t.widest() > t.num_tokens() ? t.widest() : t.num_tokens();
  Scratch own;
  own.panel = room.take<uint32_t>(panel_size(pairs_of(deepest) + LANES));
  own.normed = room.take<float>(t.width);
  own.head = head_in(room, t.length, t.head_width(), with_gradient);
  return own;
}

/* One block: from kept.x to `next`, [tokens, width]. */
static void block_forward(const Trunk &t, const Block &w, const Kept &kept, bool is_last, bf16 *activated,
                          const Scratch &own, float *next) {
  const int d = t.width, tokens = t.num_tokens(), queries = is_last ? t.num_queries() : tokens;
  const size_t ld = padded(d), ld3 = padded(3 * d), ldi = padded(t.inner);
#pragma omp for schedule(static) nowait
  for (int r = 0; r < tokens; r++) clear_end(kept.qkv + r * ld3, 3 * d); /* which a narrow head's products reach */
  norm_rows(kept.x, tokens, w.norm1_gamma, w.norm1_beta, d, t.epsilon, own.normed, kept.normed1);
  project(kept.normed1, tokens, d, w.qkv, w.qkv_bias, 3 * d, own.panel,
          [&](int r, int j, vec low, vec high) { store_panel(kept.qkv + r * ld3 + j, low, high); });
#pragma omp for schedule(dynamic, 1)
  for (int i = 0; i < t.rows * t.heads; i++) attend_forward(t, i / t.heads, i % t.heads, kept, is_last, own.head);
  project(kept.context, queries, d, w.out, w.out_bias, d, own.panel, [&](int r, int j, vec low, vec high) {
    const float *x = kept.x + (is_last ? t.tokens.query[r] : r) * ld + j;
    store_panel(kept.middle + r * ld + j, load(x) + low, load(x + LANES) + high);
  });
  norm_rows(kept.middle, queries, w.norm2_gamma, w.norm2_beta, d, t.epsilon, own.normed, kept.normed2);
  project(kept.normed2, queries, d, w.in, w.in_bias, t.inner, own.panel, [&](int r, int j, vec low, vec high) {
    store_panel(kept.inner + r * ldi + j, low, high);
    store_panel(activated + r * ldi + j, gelu_of(low), gelu_of(high));
  });
  project(activated, queries, t.inner, w.back, w.back_bias, d, own.panel, [&](int r, int j, vec low, vec high) {
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

/* A block's gradients; b.dx turns from that of its output into that of its input. */
static void block_back(const Trunk &t, const Block &w, const Kept &kept, bool is_last, const Backward &b,
                       const Scratch &own, const BlockGradients &to) {
  const int d = t.width, tokens = t.num_tokens(), queries = is_last ? t.num_queries() : tokens;
  const size_t ld = padded(d), ldi = padded(t.inner);
  const auto to_normed = [&](int r, int j, vec low, vec high) { store_panel(b.dnormed + r * ld + j, low, high); };
  round_rows(b.dx, ld, queries, d, b.upstream);
  project_back(b.upstream, queries, d, w.back, t.inner, own.panel, [&](int r, int j, vec low, vec high) {
    const size_t at = r * ldi + j;
    vec y_low, y_high, slope_low, slope_high;
    gelu_and_slope(load_widened(kept.inner + at), &y_low, &slope_low);
    gelu_and_slope(load_widened(kept.inner + at + LANES), &y_high, &slope_high);
    store_panel(b.activated + at, y_low, y_high);
    store_panel(b.dinner + at, low * slope_low, high * slope_high);
  });
#pragma omp barrier
  turn(b.activated, queries, t.inner, b.turned);
  project_back(b.dinner, queries, t.inner, w.in, d, own.panel, to_normed);
#pragma omp barrier
  weight_gradients(b.turned, queries, t.inner, b.upstream, d, own.panel, to.back, to.back_bias);
#pragma omp barrier
  turn(kept.normed2, queries, d, b.turned);
  norm_gradients(kept.middle, queries, b.dnormed, w.norm2_gamma, t, b.dx, b.parts, to.norm2_gamma, to.norm2_beta);
  weight_gradients(b.turned, queries, d, b.dinner, t.inner, own.panel, to.in, to.in_bias);
  round_rows(b.dx, ld, queries, d, b.upstream);
  turn(kept.context, queries, d, b.turned);
  project_back(b.upstream, queries, d, w.out, d, own.panel,
               [&](int r, int j, vec low, vec high) { store_panel(b.dcontext + r * ld + j, low, high); });
#pragma omp barrier
  weight_gradients(b.turned, queries, d, b.upstream, d, own.panel, to.out, to.out_bias);
#pragma omp for schedule(dynamic, 1)
  for (int i = 0; i < t.rows * t.heads; i++)
    attend_back(t, i / t.heads, i % t.heads, kept, is_last, b.dcontext, b.dqkv, own.head);
  turn(kept.normed1, tokens, d, b.turned);
  project_back(b.dqkv, tokens, 3 * d, w.qkv, d, own.panel, to_normed);
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
  weight_gradients(b.turned, tokens, d, b.dqkv, 3 * d, own.panel, to.qkv, to.qkv_bias);
  norm_gradients(kept.x, tokens, b.dnormed, w.norm1_gamma, t, b.dx, b.parts, to.norm1_gamma, to.norm1_beta);
}

#endif

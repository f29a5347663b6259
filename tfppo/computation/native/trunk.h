/* What a trunk computes on: the real tokens of a batch, and what its blocks keep of them for the gradient. */
#ifndef TFPPO_TRUNK_H
#define TFPPO_TRUNK_H

#include <vector>

#include "memory.h"
#include "rounded.h"

/* The real tokens of a batch [B, T], row after row; those from position `start` on are the queries of the last block.
 */
struct Tokens {
  std::vector<int> place;                    /* of each, in [B, T] */
  std::vector<int> query;                    /* of each query, its token */
  std::vector<int> first_token, first_query; /* of each row, and of one row more */
};

struct Trunk {
  int rows, length, start, width, heads, inner;
  float epsilon;
  Tokens tokens;
  int head_width() const { return width / heads; }
  int num_tokens() const { return tokens.place.size(); }
  int num_queries() const { return tokens.query.size(); }
  int widest() const { return inner > 3 * width ? inner : 3 * width; }
  /* Where a query's state is in [B, T - start, D]. */
  size_t state_of(int query) const {
    const size_t place = tokens.place[tokens.query[query]];
    return (place - (place / length + 1) * start) * width;
  }
};

static Tokens tokens_of(const bool *real, int rows, int length, int start) {
  Tokens tokens;
  for (int row = 0; row < rows; row++) {
    tokens.first_token.push_back(tokens.place.size());
    tokens.first_query.push_back(tokens.query.size());
    for (int t = 0; t < length; t++)
      if (real[row * length + t]) {
        if (t >= start) tokens.query.push_back(tokens.place.size());
        tokens.place.push_back(row * length + t);
      }
  }
  tokens.first_token.push_back(tokens.place.size());
  tokens.first_query.push_back(tokens.query.size());
  return tokens;
}

/* What a block keeps for its gradient. Of the last block, all but x, normed1 and qkv is of the queries alone. */
struct Kept {
  float *x, *middle;                               /* the block's input, and with attention added: [tokens, width] */
  bf16 *normed1, *qkv, *context, *normed2, *inner; /* inner: before the activation */
};

static Kept kept_in(Room &room, const Trunk &t, bool is_last) {
  const size_t tokens = t.num_tokens(), queries = is_last ? t.num_queries() : tokens, ld = padded(t.width);
  Kept kept;
  kept.x = room.take<float>(tokens * ld), kept.middle = room.take<float>(queries * ld);
  kept.normed1 = room.take<bf16>(tokens * ld), kept.qkv = room.take<bf16>(tokens * padded(3 * t.width));
  kept.context = room.take<bf16>(queries * ld), kept.normed2 = room.take<bf16>(queries * ld);
  kept.inner = room.take<bf16>(queries * padded(t.inner));
  return kept;
}

#endif

/* A Transformer's weights, or what there is of each of them, by name; and where operations read them from. */
#ifndef TFPPO_WEIGHTS_H
#define TFPPO_WEIGHTS_H

#include <vector>

#include "tensors.h"

constexpr int MATRICES = 4, VECTORS = 8, PER_BLOCK = MATRICES + VECTORS, PER_TRUNK = 2; /* weights */

template <typename Matrix, typename Vector>
struct BlockOf {
  Vector norm1_gamma, norm1_beta;
  Matrix qkv;
  Vector qkv_bias;
  Matrix out;
  Vector out_bias, norm2_gamma, norm2_beta;
  Matrix in;
  Vector in_bias;
  Matrix back;
  Vector back_bias;
};

/* All blocks, and the final norm. */
template <typename Matrix, typename Vector>
struct TrunkOf {
  std::vector<BlockOf<Matrix, Vector>> blocks;
  Vector gamma = nullptr, beta = nullptr;
  explicit TrunkOf(int num_blocks) : blocks(num_blocks) {}
};

using Block = BlockOf<const float *, const float *>;
using Weights = TrunkOf<const float *, const float *>;

/* The sizes of weights. */
struct Widths {
  Size width{"D"}, qkv{"3 D"}, inner{"F"};
};

/* Sets what follows from the width, and refuses heads that do not divide it. */
inline void check_heads(int heads, Widths &widths) {
  check(heads > 0 && widths.width > 0 && widths.width % heads == 0, "num_heads is ", heads,
        ", which does not divide the width D = ", int64_t(widths.width));
  widths.qkv.value = 3 * widths.width;
}

/* Refuses more tokens of a batch, or heads of its rows, than int can count. */
inline void check_places(int64_t rows, int64_t length, int64_t heads) {
  constexpr int64_t most = 1 << 30;
  check(rows * length <= most && rows * heads <= most, "a batch of B = ", rows, ", T = ", length, " with ", heads,
        " heads is larger than can be counted");
}

/* Refuses more weights, or fewer, than blocks have. */
inline void check_count(const char *name, int given, int num_blocks, int per_block, int besides) {
  check(given == num_blocks * per_block + besides, name, " is ", given, ", wanted is ",
        num_blocks * per_block + besides, " for ", num_blocks, " blocks");
}

/* In the weights' order, vector(name, member, size) of every vector, and matrix(name, member, rows, columns). */
template <typename Trunk, typename OnVector, typename OnMatrix>
static void for_each_weight(Trunk &trunk, Widths &s, OnVector vector, OnMatrix matrix) {
  for (int i = 0; i < int(trunk.blocks.size()); i++) {
    auto &block = trunk.blocks[i];
    vector(Name("norm1_gamma", i), block.norm1_gamma, s.width);
    vector(Name("norm1_beta", i), block.norm1_beta, s.width);
    matrix(Name("qkv", i), block.qkv, s.width, s.qkv);
    vector(Name("qkv_bias", i), block.qkv_bias, s.qkv);
    matrix(Name("out", i), block.out, s.width, s.width);
    vector(Name("out_bias", i), block.out_bias, s.width);
    vector(Name("norm2_gamma", i), block.norm2_gamma, s.width);
    vector(Name("norm2_beta", i), block.norm2_beta, s.width);
    matrix(Name("in", i), block.in, s.width, s.inner);
    vector(Name("in_bias", i), block.in_bias, s.inner);
    matrix(Name("back", i), block.back, s.inner, s.width);
    vector(Name("back_bias", i), block.back_bias, s.width);
  }
  vector(Name("final_gamma"), trunk.gamma, s.width);
  vector(Name("final_beta"), trunk.beta, s.width);
}

/* The weights that are the inputs from `first` on. */
inline Weights weights_from(Context &context, int first, int num_blocks, Widths &widths) {
  Weights weights(num_blocks);
  for_each_weight(
      weights, widths,
      [&](const Name &name, const float *&to, Size &size) { to = context.input<float>(first++, name, {&size}); },
      [&](const Name &name, const float *&to, Size &rows, Size &columns) {
        to = context.input<float>(first++, name, {&rows, &columns});
      });
  return weights;
}

#endif

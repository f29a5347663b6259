/* Packed matrices, as TfppoPack makes them and other operations read them: bfloat16 [panels, pairs, 2 PANEL]. */
#ifndef TFPPO_PACKED_H
#define TFPPO_PACKED_H

#include "products.h"
#include "tensors.h"

/* The n-th input: a matrix [k, n], packed. */
inline const uint32_t *packed_matrix(Context &context, int input, const Name &name, int64_t k, int64_t n) {
  Size panels{"panels", panels_of(int(n))}, pairs{"pairs", pairs_of(int(k))}, both{"of columns", 2 * PANEL};
  return context.input<uint32_t>(input, name, {&panels, &pairs, &both}, "it is not the packed matrix");
}

#endif

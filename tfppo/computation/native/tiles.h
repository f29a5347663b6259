/* The processor's matrix tiles (AMX), which multiply bfloat16 numbers. */
#ifndef TFPPO_TILES_H
#define TFPPO_TILES_H
#ifdef __AMX_BF16__

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

constexpr int SIDE = 16; /* rows of a tile, and floats or pairs of bfloat16 numbers in each */

/* Whether the kernel lets this process use tiles, which it must be asked for once. */
static bool tiles_allowed() {
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  static const bool allowed = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
  return allowed;
}

/* Gives this thread's eight tiles so many rows of 64 bytes each. */
INLINE void load_tiles(const int rows[8]) {
  struct {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } shape;
  for (int i = 0; i < 8; i++) shape.bytes[i] = rows[i] ? 4 * SIDE : 0, shape.rows[i] = rows[i];
  __asm__ volatile("" : : "m"(shape)); /* compilers believe that the next line reads its first 8 bytes alone */
  _tile_loadconfig(&shape);
}

#endif
#endif

/* Products of float32 matrices through the processor's matrix tiles (AMX), which multiply bfloat16 numbers.

   A number is the sum of two of bfloat16, `high` and `low`, to 17 bits of its 24; of a product of two numbers, all but
   low times low is computed: three products of tiles with float32 sums, to about 1e-5 of their largest terms. On the
   right, pairs of neighbours along the sum lie together. Every sum runs in one order, whatever the number of threads
   and of rows. */
#ifndef TFPPO_TILES_H
#define TFPPO_TILES_H
#ifdef __AMX_BF16__

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

typedef uint16_t bf16;

enum {
  SIDE = 16,           /* rows, and columns of floats, of a tile */
  STEP = 2 * SIDE,     /* numbers of a sum that a tile holds */
  TASK_SIZE = 1 << 19, /* bytes of a right matrix that a task has at most, if more than a panel: they stay in a cache */
};

/* Whether the kernel lets this process use tiles, which it must be asked for once. */
static bool tiles_allowed() {
  enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
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
  for (int i = 0; i < 8; i++) shape.bytes[i] = rows[i] ? 2 * STEP : 0, shape.rows[i] = rows[i];
  _tile_loadconfig(&shape);
}

/* While it lives, this thread's tiles are whole ones. */
struct Tiles {
  Tiles() {
    const int rows[8] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
    load_tiles(rows);
  }
  ~Tiles() { _tile_release(); }
};

/* Rows of split numbers: `ld` apart, of whole steps, 0 beyond the numbers; as many as whole tiles. */
struct Split {
  bf16 *high, *low;
  size_t ld;
  Split from(size_t row) const { return {high + row * ld, low + row * ld, ld}; }
};

INLINE size_t split_ld(size_t n) { return (n + STEP - 1) / STEP * STEP + STEP; }
INLINE int whole_tiles(int rows) { return (rows + SIDE - 1) / SIDE * SIDE; }
INLINE int whole_steps(int n) { return (n + STEP - 1) / STEP * STEP; }

INLINE __mmask16 lanes_below(int n) { return n >= LANES ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }
INLINE __m512 load_below(const float *from, int n) { return _mm512_maskz_loadu_ps(lanes_below(n), from); }
INLINE __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

/* 32 numbers, and what their first halves leave of them. */
INLINE void split(__m512 first, __m512 second, __m512i *high, __m512i *low) {
  *high = (__m512i)_mm512_cvtne2ps_pbh(second, first);
  const __m512 left0 = _mm512_sub_ps(first, widen(_mm512_castsi512_si256(*high)));
  const __m512 left1 = _mm512_sub_ps(second, widen(_mm512_extracti64x4_epi64(*high, 1)));
  *low = (__m512i)_mm512_cvtne2ps_pbh(left1, left0);
}

INLINE void split_row(const float *x, int n, Split to) {
  for (int i = 0; i < n; i += STEP) {
    __m512i high, low;
    split(load_below(x + i, n - i), load_below(x + i + LANES, n - i - LANES), &high, &low);
    _mm512_storeu_si512(to.high + i, high), _mm512_storeu_si512(to.low + i, low);
  }
}

/* The columns of two rows as pairs of bfloat16, first halves and what they leave. */
INLINE void split_pairs(__m512 first, __m512 second, __m512i *high, __m512i *low) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  split(first, second, high, low);
  *high = _mm512_permutexvar_epi16(order, *high), *low = _mm512_permutexvar_epi16(order, *low);
}

/* Of a right matrix, STEP rows and SIDE columns: pairs of rows. */
struct Right {
  uint32_t high[SIDE * SIDE], low[SIDE * SIDE];
};

/* A panel of a right matrix has 2 * SIDE columns of all its rows: two tiles a step. Panels lie one after the other. */
INLINE int steps_of(int k) { return (k + STEP - 1) / STEP; }
INLINE int panels_for(int n) { return (n + STEP - 1) / STEP; }

/* A panel of w [k, n], of the columns from j on; 0 beyond. */
static void pack_panel(const float *w, int k, int n, int j, Right *to) {
  for (int r = 0; r < steps_of(k) * STEP; r += 2) {
    const int pair = r % STEP / 2 * SIDE;
    for (int side = 0; side < 2; side++) {
      const __mmask16 some = lanes_below(n - j - side * SIDE);
      const float *row = w + (size_t)r * n + j + side * SIDE;
      Right &tile = to[r / STEP * 2 + side];
      __m512i high, low;
      split_pairs(_mm512_maskz_loadu_ps(r < k ? some : 0, row), _mm512_maskz_loadu_ps(r + 1 < k ? some : 0, row + n),
                  &high, &low);
      _mm512_storeu_si512(tile.high + pair, high), _mm512_storeu_si512(tile.low + pair, low);
    }
  }
}

/* A panel of the transpose of e [n, k], of its rows from j on. */
static void pack_panel_transposed(const float *e, int k, int n, int j, Right *to) {
  for (int step = 0; step < steps_of(k); step++)
    for (int side = 0; side < 2; side++) {
      __m512i high[SIDE] = {}, low[SIDE] = {};
      for (int i = 0; i < minimum(SIDE, n - j - side * SIDE); i++) {
        const float *row = e + (size_t)(j + side * SIDE + i) * k + step * STEP;
        const int left = k - step * STEP;
        split(load_below(row, left), load_below(row + LANES, left - LANES), high + i, low + i);
      }
      transpose((ivec *)high), transpose((ivec *)low);
      Right &tile = to[step * 2 + side];
      for (int i = 0; i < SIDE; i++) {
        _mm512_storeu_si512(tile.high + i * SIDE, high[i]), _mm512_storeu_si512(tile.low + i * SIDE, low[i]);
      }
    }
}

/* sums[0:16 ROWS, 0:32] = x @ a panel: low times high, then high times high and low. */
template <int ROWS>
INLINE void multiply_tiles(Split x, const Right *panel, int steps, float *sums) {
  const size_t row = 2 * x.ld, side = 4 * SIDE, out = 4 * STEP;
  _tile_zero(0);
  _tile_zero(1);
  if (ROWS > 1) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int step = 0; step < steps; step++, panel += 2) {
    const bf16 *high = x.high + step * STEP, *low = x.low + step * STEP;
    _tile_loadd(4, low, row);
    _tile_loadd(6, panel[0].high, side);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel[1].high, side);
    _tile_dpbf16ps(1, 4, 7);
    if (ROWS > 1) {
      _tile_loadd(5, low + SIDE * x.ld, row);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(4, high, row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (ROWS > 1) {
      _tile_loadd(5, high + SIDE * x.ld, row);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(6, panel[0].low, side);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel[1].low, side);
    _tile_dpbf16ps(1, 4, 7);
    if (ROWS > 1) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, out);
  _tile_stored(1, sums + SIDE, out);
  if (ROWS > 1) {
    _tile_stored(2, sums + SIDE * STEP, out);
    _tile_stored(3, sums + SIDE * STEP + SIDE, out);
  }
}

/* ending(row, column, low, high) of x[0:rows, 0:k] @ w [k, n]: 32 columns of each row. For all threads of a region. */
template <typename Ending>
INLINE void multiply_split(Split x, int rows, int k, const Right *w, int n, Ending ending) {
  alignas(64) float sums[2 * SIDE * STEP];
  const int steps = steps_of(k), panels = panels_for(n), most = TASK_SIZE / (2 * steps * (int)sizeof(Right)) + 1;
  const int threads = omp_get_num_threads(), share = (panels + 4 * threads - 1) / (4 * threads);
  const int each = rows > 2 * SIDE ? minimum(most, share) : 1;
  const Tiles tiles;
#pragma omp for schedule(dynamic, 1)
  for (int first = 0; first < panels; first += each)
    for (int r = 0; r < rows; r += 2 * SIDE)
      for (int panel = first; panel < minimum(panels, first + each); panel++) {
        const int here = minimum(2 * SIDE, rows - r);
        const Right *own = w + (size_t)panel * steps * 2;
        if (here > SIDE)
          multiply_tiles<2>(x.from(r), own, steps, sums);
        else
          multiply_tiles<1>(x.from(r), own, steps, sums);
        for (int i = 0; i < here; i++)
          ending(r + i, panel * STEP, load(sums + i * STEP), load(sums + i * STEP + LANES));
      }
}

#endif
#endif

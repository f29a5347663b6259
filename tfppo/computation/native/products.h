/* Products of bfloat16 matrices with float32 sums, through the processor's own instructions for them: its matrix tiles
   (AMX), or else vectors (AVX512_BF16).

   Both multiply pairs: two neighbours along the sum, of the left and of the right matrix. So the left one is read as it
   lies, by rows, and the right one is packed: PANEL columns at a time, pair after pair. Every sum runs in one order,
   whatever the number of threads. */
#ifndef TFPPO_PRODUCTS_H
#define TFPPO_PRODUCTS_H

#include <immintrin.h>

#include "tiles.h"
#include "vectors.h"

typedef uint16_t bf16;

constexpr int PANEL = 32; /* columns of a packed matrix */
/* Rows that are multiplied together, and of how many a sum's pairs are a multiple. */
#ifdef __AMX_BF16__
constexpr int TILE = 32;  /* with PANEL columns, their sums fill four of the eight tiles */
constexpr int PAIRS = 16; /* the width of a tile */
#else
constexpr int TILE = 12; /* with PANEL columns, their sums fill 24 of the 32 registers */
constexpr int PAIRS = 1;
#endif

/* Whether this process may multiply them: matrix tiles have to be asked for. */
INLINE bool products_allowed() {
#ifdef __AMX_BF16__
  return tiles_allowed();
#else
  return true;
#endif
}

/* Rows of bfloat16 matrices lie this far apart: whole panels, and not by a power of 2. */
INLINE size_t padded(size_t n) { return (n + PANEL - 1) / PANEL * PANEL + PANEL; }
/* Of a packed matrix's panel of up to PANEL columns, the size in pairs. */
INLINE size_t panel_size(size_t pairs) { return pairs * PANEL; }
/* Makes what lies beyond the n numbers of a row 0. */
INLINE void clear_end(bf16 *row, int n) { memset(row + n, 0, (padded(n) - n) * sizeof(bf16)); }
INLINE int panels_of(int n) { return (n + PANEL - 1) / PANEL; }
INLINE int tiles_of(int n) { return (n + TILE - 1) / TILE; }
/* Of n numbers, with those that are 0 to make them whole tiles. */
INLINE int pairs_of(int n) { return (n + 2 * PAIRS - 1) / (2 * PAIRS) * PAIRS; }

INLINE __mmask16 first_lanes(int n) { return n >= LANES ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }
INLINE vec load_some(const float *from, int n) { return (vec)_mm512_maskz_loadu_ps(first_lanes(n), from); }
INLINE void store_some(float *to, vec value, int n) { _mm512_mask_storeu_ps(to, first_lanes(n), (__m512)value); }

INLINE __m256i rounded(vec x) { return (__m256i)_mm512_cvtneps_pbh((__m512)x); }
INLINE void store_rounded(bf16 *to, vec value) { _mm256_storeu_si256((__m256i *)to, rounded(value)); }
INLINE void store_rounded_some(bf16 *to, vec value, int n) {
  _mm256_mask_storeu_epi16(to, first_lanes(n), rounded(value));
}
INLINE vec widened(__m256i x) { return (vec)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
INLINE vec load_widened(const bf16 *from) { return widened(_mm256_loadu_si256((const __m256i *)from)); }

/* The 32 columns of a panel of one row, as float or rounded; with n, the first n of them. */
INLINE void store_panel(float *to, vec low, vec high) { store(to, low), store(to + LANES, high); }
INLINE void store_panel(bf16 *to, vec low, vec high) { store_rounded(to, low), store_rounded(to + LANES, high); }
INLINE void store_panel(float *to, vec low, vec high, int n) {
  store_some(to, low, n), store_some(to + LANES, high, n - LANES);
}
INLINE void store_panel(bf16 *to, vec low, vec high, int n) {
  store_rounded_some(to, low, n), store_rounded_some(to + LANES, high, n - LANES);
}

/* Up to 16 numbers as bfloat16, 0 beyond them. */
INLINE __m256i some_rounded(const float *from, int n) { return rounded(load_some(from, n)); }
INLINE __m256i some_rounded(const bf16 *from, int n) { return _mm256_maskz_loadu_epi16(first_lanes(n), from); }

INLINE __m512i paired(__m256i first, __m256i second) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
}

/* Packs [rows, columns] of float or bf16 into pairs of rows: to[p, j] = (from[2p, j], from[2p + 1, j]), j < PANEL.

   What lies beyond the rows and columns is 0. */
template <typename T>
static void pack_rows(const T *from, size_t ld, int rows, int columns, uint32_t *to) {
  for (int r = 0; r < 2 * pairs_of(rows); r += 2, to += PANEL) {
    const T *first = from + r * ld;
    for (int j = 0; j < PANEL; j += LANES) {
      const __m256i second = some_rounded(first + ld + j, r + 1 < rows ? columns - j : 0);
      const __m512i pairs = paired(some_rounded(first + j, r < rows ? columns - j : 0), second);
      _mm512_storeu_si512(to + j, pairs);
    }
  }
}

INLINE __m512i sixteen_pairs(const float *from, int n) {
  return (__m512i)_mm512_cvtne2ps_pbh((__m512)load_some(from + LANES, n - LANES), (__m512)load_some(from, n));
}
INLINE __m512i sixteen_pairs(const bf16 *from, int n) {
  return _mm512_maskz_loadu_epi16(n >= 2 * LANES ? ~0u : (1u << n) - 1, from);
}

/* Packs the transpose of [rows, columns] of float or bf16, up to PANEL rows: to[p, j] = (from[j, 2p], from[j, 2p + 1]).

   to has room for whole groups of 16 pairs. */
template <typename T>
static void pack_transposed(const T *from, size_t ld, int rows, int columns, uint32_t *to) {
  for (int c = 0; c < columns; c += 2 * LANES)
    for (int j = 0; j < PANEL; j += LANES) {
      ivec turned[LANES] = {};
      for (int i = 0; i < LANES; i++)
        if (j + i < rows) turned[i] = (ivec)sixteen_pairs(from + (j + i) * ld + c, minimum(columns - c, 2 * LANES));
      transpose(turned);
      for (int i = 0; i < LANES; i++) _mm512_storeu_si512(to + (size_t)(c / 2 + i) * PANEL + j, (__m512i)turned[i]);
    }
}

/* to[j, r] = from[r, j], in rows ldt apart, for up to 16 of the columns; 0 beyond the rows and columns. */
[[maybe_unused]] static void turn_columns(const bf16 *from, size_t ld, int rows, int columns, bf16 *to, size_t ldt) {
  for (int r = 0; r < rows; r += 2 * LANES) {
    ivec turned[LANES];
    for (int i = 0; i < LANES; i++) {
      const int at = r + 2 * i;
      const bf16 *first = from + at * ld;
      turned[i] = (ivec)paired(some_rounded(first, at < rows ? columns : 0),
                               some_rounded(first + ld, at + 1 < rows ? columns : 0));
    }
    transpose(turned);
    for (int j = 0; j < LANES; j++) _mm512_storeu_si512(to + j * ldt + r, (__m512i)turned[j]);
  }
}

/* A left matrix: rows of pairs, `ld` apart; what lies beyond its width, up to whole tiles, is finite. */
struct Left {
  const uint32_t *at;
  size_t ld;
  Left from(size_t row) const { return {at + row * ld, ld}; }
};

INLINE Left by_rows(const bf16 *matrix, size_t ld) { return {(const uint32_t *)matrix, ld / 2}; }

#ifdef __AMX_BF16__
/* While it lives, this thread's tiles have the shapes of products of up to TILE rows. */
struct Products {
  int rows = 0;
  void shape(int wanted) {
    if (wanted == rows) return;
    rows = wanted;
    const int low = minimum(rows, SIDE), high = rows - low;
    const int tiles[8] = {low, low, high, high, low, high, SIDE, SIDE};
    load_tiles(tiles);
  }
  ~Products() { _tile_release(); }
};

/* sums[0:rows, 0:PANEL] = the product of up to TILE rows with a panel. */
INLINE void multiply_tile(Left a, int rows, const uint32_t *panel, int pairs, float *sums, Products &products) {
  products.shape(rows);
  __asm__ volatile("" ::: "memory"); /* compilers do not know that tiles are loaded from memory */
  const size_t row = 4 * a.ld, side = 4 * PANEL;
  const bool both = rows > SIDE;
  _tile_zero(0);
  _tile_zero(1);
  if (both) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int p = 0; p < pairs; p += PAIRS, panel += PAIRS * PANEL) {
    _tile_loadd(4, a.at + p, row);
    _tile_loadd(6, panel, side);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + LANES, side);
    _tile_dpbf16ps(1, 4, 7);
    if (both) {
      _tile_loadd(5, a.at + SIDE * a.ld + p, row);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, side);
  _tile_stored(1, sums + LANES, side);
  if (both) {
    _tile_stored(2, sums + SIDE * PANEL, side);
    _tile_stored(3, sums + SIDE * PANEL + LANES, side);
  }
}
#else
struct Products {};

/* sums[0:R, 0:PANEL] = the product of R rows with a panel. */
template <int R>
static __attribute__((noinline)) void multiply(Left a, const uint32_t *panel, int pairs, float *sums) {
  __m512 sum[R][2];
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
  for (int p = 0; p < pairs; p++, panel += PANEL) {
    const __m512bh b0 = (__m512bh)_mm512_loadu_si512(panel), b1 = (__m512bh)_mm512_loadu_si512(panel + LANES);
    for (int r = 0; r < R; r++) {
      const __m512bh x = (__m512bh)_mm512_set1_epi32(a.at[p + r * a.ld]);
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], x, b0);
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], x, b1);
    }
  }
  for (int r = 0; r < R; r++) {
    _mm512_storeu_ps(sums + r * PANEL, sum[r][0]);
    _mm512_storeu_ps(sums + r * PANEL + LANES, sum[r][1]);
  }
}

template <int R = TILE>
INLINE void multiply_tile(Left a, int rows, const uint32_t *panel, int pairs, float *sums, Products &products) {
  if constexpr (R > 0) {
    if (rows == R) return multiply<R>(a, panel, pairs, sums);
    multiply_tile<R - 1>(a, rows, panel, pairs, sums, products);
  }
}
#endif

/* ending(row, low, high): the 32 sums with a panel of each row from `first`, where a tile begins, to `end`. */
template <typename Ending>
INLINE void multiply_rows(Left a, int first, int end, const uint32_t *panel, int pairs, Ending ending) {
  alignas(64) float sums[TILE * PANEL];
  Products products;
  for (int i = first; i < end; i += TILE) {
    const int here = minimum(TILE, end - i);
    multiply_tile(a.from(i), here, panel, pairs, sums, products);
    for (int r = 0; r < here; r++) ending(i + r, load(sums + r * PANEL), load(sums + r * PANEL + LANES));
  }
}

#endif

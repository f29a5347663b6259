/* Vectors of floats, and what both sampling and training compute with them: every sum runs in one order. */
#ifndef TFPPO_VECTORS_H
#define TFPPO_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Floats of a vector: one register of AVX-512, or of AVX. Wider ones would be kept in memory. */
#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef float vec4 __attribute__((vector_size(4 * sizeof(float))));
typedef int32_t ivec __attribute__((vector_size(LANES * sizeof(int32_t))));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }

INLINE int minimum(int a, int b) { return a < b ? a : b; }

#define HALVES(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

/* The sums of as many vectors' lanes as a vector has: halves are added until one lane of each is left, all at once. */
#ifdef __AVX512F__
INLINE vec sums_of(const vec v[LANES]) {
  vec half[8], quarter[4], pair[2];
  for (int i = 0; i < 8; i++)
    half[i] = HALVES(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
              HALVES(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; i++)
    quarter[i] = HALVES(half[i], half[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
                 HALVES(half[i], half[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    pair[i] = HALVES(quarter[i], quarter[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
              HALVES(quarter[i], quarter[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  return HALVES(pair[0], pair[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
         HALVES(pair[0], pair[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

/* 16 dwords each of 16 vectors, turned so that vector i has the i-th of each. */
INLINE void transpose(ivec v[LANES]) {
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define LOW2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define HIGH2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define LOW1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define HIGH1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define SWAP(distance, low, high)                            \
  for (int i = 0; i < LANES; i++)                            \
    if (!(i & distance)) {                                   \
      const ivec a = v[i], b = v[i + distance];              \
      v[i] = __builtin_shufflevector(a, b, low);             \
      v[i + distance] = __builtin_shufflevector(a, b, high); \
    }
  SWAP(8, LOW8, HIGH8)
  SWAP(4, LOW4, HIGH4)
  SWAP(2, LOW2, HIGH2)
  SWAP(1, LOW1, HIGH1)
#undef SWAP
}
#else
INLINE vec sums_of(const vec v[LANES]) {
  vec half[4], pair[2];
  for (int i = 0; i < 4; i++)
    half[i] = HALVES(v[i], v[i + 4], 0, 1, 2, 3, 8, 9, 10, 11) + HALVES(v[i], v[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  for (int i = 0; i < 2; i++)
    pair[i] = HALVES(half[i], half[i + 2], 0, 1, 8, 9, 4, 5, 12, 13) +
              HALVES(half[i], half[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
  return HALVES(pair[0], pair[1], 0, 8, 2, 10, 4, 12, 6, 14) + HALVES(pair[0], pair[1], 1, 9, 3, 11, 5, 13, 7, 15);
}
#endif

/* The sum of a vector's lanes, in the same order. */
INLINE float sum_of(vec v) {
  vec4 parts[LANES / 4];
  memcpy(parts, &v, sizeof(v));
  for (int half = LANES / 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) parts[i] += parts[i + half];
  return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

/* exp(x) to 1e-7 of its value: 2^n times a polynomial of the rest, |rest| <= ln(2) / 2 (Cody and Waite's reduction). */
INLINE vec exp_of(vec x) {
  const float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  vec low = x * 0 - 87.0f, high = x * 0 + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  vec shifter = x * 0 + 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
  vec n = (x * log2e + shifter) - shifter;
  vec r = x - n * ln2_high - n * ln2_low;
  vec p = r * (1.0f / 5040) + (1.0f / 720);
  p = p * r + (1.0f / 120);
  p = p * r + (1.0f / 24);
  p = p * r + (1.0f / 6);
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  union {
    vec f;
    ivec i;
  } scale;
  scale.i = (__builtin_convertvector(n, ivec) + 127) << 23;
  return p * scale.f;
}

/* GELU in its tanh form: 0.5 x (1 + tanh(u)) is x / (1 + exp(-2u)). */
INLINE vec gelu_of(vec x) {
  vec u = 0.7978845608f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp_of(-2.0f * u));
}

/* out[0:d] = gamma (x - mean) / sqrt(variance + epsilon) + beta, of one row. */
[[maybe_unused]] static void layer_norm(const float *x, const float *gamma, const float *beta, int d, float epsilon,
                                        float *out) {
  vec total = {0};
  float rest = 0;
  int i = 0;
  for (; i + LANES <= d; i += LANES) total += load(x + i);
  for (; i < d; i++) rest += x[i];
  float mean = (sum_of(total) + rest) / d;
  total = total * 0;
  rest = 0;
  for (i = 0; i + LANES <= d; i += LANES) {
    vec centred = load(x + i) - mean;
    total += centred * centred;
  }
  for (; i < d; i++) rest += (x[i] - mean) * (x[i] - mean);
  float scale = 1.0f / sqrtf((sum_of(total) + rest) / d + epsilon);
  for (i = 0; i + LANES <= d; i += LANES)
    store(out + i, (load(x + i) - mean) * scale * load(gamma + i) + load(beta + i));
  for (; i < d; i++) out[i] = (x[i] - mean) * scale * gamma[i] + beta[i];
}

#endif

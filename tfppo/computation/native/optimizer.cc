/* Two TensorFlow operations that make a step of Adam, in one pass over memory each:

   TfppoSquares  of each gradient, the sum of its squares
   TfppoAdam     writes the step into variables and their moments

   Gradients are float32 or bfloat16, and become float32 number by number: no copy of them is made. */
#ifdef __AVX512BF16__
#include <variant>
#include <vector>

#include "memory.h"
#include "operations.h"
#include "products.h"
#include "variables.h"

namespace {

constexpr int CHUNK = 1 << 14; /* numbers that are added up, or updated, together, so that threads don't matter */

INLINE vec load_numbers(const float *from, int n) { return load_some(from, n); }
INLINE vec load_numbers(const bf16 *from, int n) { return widened(some_rounded(from, n)); }

/* A gradient of either dtype. */
struct Gradient {
  std::variant<const float *, const bf16 *> numbers;
  int64_t count;
};

/* A chunk of a gradient. */
struct Chunk {
  int gradient;
  int64_t first;
  int size;
};

static std::vector<Chunk> chunks_of(const std::vector<Gradient> &gradients) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < gradients.size(); i++)
    for (int64_t first = 0; first < gradients[i].count; first += CHUNK) {
      const int64_t rest = gradients[i].count - first;
      chunks.push_back({int(i), first, int(rest < CHUNK ? rest : CHUNK)});
    }
  return chunks;
}

/* `count` gradients, inputs from `first` on. */
static std::vector<Gradient> gradients_from(Context &context, int first, int count) {
  std::vector<Gradient> gradients;
  for (int i = 0; i < count; i++) {
    const Tensor tensor = context.tensor(first + i);
    const void *data = TF_TensorData(tensor.get());
    Gradient gradient{static_cast<const float *>(data), TF_TensorElementCount(tensor.get())};
    if (TF_TensorType(tensor.get()) == TF_BFLOAT16) gradient.numbers = static_cast<const bf16 *>(data);
    gradients.push_back(gradient);
  }
  return gradients;
}

/* Calls work(chunk, its numbers in the gradient's own type, n-th chunk) of all chunks, by all cores. */
template <typename Work>
static void for_each_chunk(const std::vector<Gradient> &gradients, const std::vector<Chunk> &chunks, Work work) {
  const std::lock_guard<std::mutex> lock(cores);
#pragma omp parallel for schedule(dynamic, 4)
  for (size_t i = 0; i < chunks.size(); i++)
    std::visit([&](const auto *numbers) { work(chunks[i], numbers + chunks[i].first, i); },
               gradients[chunks[i].gradient].numbers);
}

template <typename T>
static double squares_of(const T *x, int n) {
  vec sums[2] = {};
  for (int i = 0; i < n; i += 2 * LANES) {
    const vec low = load_numbers(x + i, n - i), high = load_numbers(x + i + LANES, n - i - LANES);
    sums[0] += low * low, sums[1] += high * high;
  }
  return double(sum_of(sums[0])) + double(sum_of(sums[1]));
}

static void compute_squares(const NoAttributes &, Context &context) {
  const int count = context.num_inputs();
  const std::vector<Gradient> gradients = gradients_from(context, 0, count);
  float *squares = context.output<float>(0, TF_FLOAT, {count});
  const std::vector<Chunk> chunks = chunks_of(gradients);
  std::vector<double> sums(chunks.size()), totals(gradients.size());
  for_each_chunk(gradients, chunks,
                 [&](const Chunk &chunk, const auto *numbers, size_t i) { sums[i] = squares_of(numbers, chunk.size); });
  for (size_t i = 0; i < chunks.size(); i++) totals[chunks[i].gradient] += sums[i];
  for (size_t i = 0; i < totals.size(); i++) squares[i] = totals[i];
}

/* The shares of a gradient and of its square in the moments, 1 - beta: float32 betas of nearly 1 would not tell them.
 */
struct Adam {
  float share1, share2;
  explicit Adam(Attributes &from) : share1(from.number("share1")), share2(from.number("share2")) {}
};

/* What a variable's step needs besides its gradient. */
struct Variable {
  std::shared_ptr<float> numbers, momentum, velocity;
  float scale, rate, decay; /* of the gradient; corrected for the moments' start at 0; of the numbers themselves */
};

template <typename T>
static void step(const Adam &adam, const Variable &own, int64_t first, const T *gradient, int n, float epsilon) {
  float *w = own.numbers.get() + first, *m = own.momentum.get() + first, *v = own.velocity.get() + first;
  for (int i = 0; i < n; i += LANES) {
    const vec g = load_numbers(gradient + i, n - i) * own.scale;
    const vec old_m = load_some(m + i, n - i), old_v = load_some(v + i, n - i);
    const vec new_m = old_m + (g - old_m) * adam.share1, new_v = old_v + (g * g - old_v) * adam.share2;
    const vec root = (vec)_mm512_sqrt_ps((__m512)new_v) + epsilon;
    store_some(m + i, new_m, n - i), store_some(v + i, new_v, n - i);
    store_some(w + i, load_some(w + i, n - i) * (1.0f - own.decay) - own.rate * new_m / root, n - i);
  }
}

static void compute_adam(const Adam &self, Context &context) {
  enum { SCALES, RATES, DECAYS, EPSILON, GRADIENTS };
  const int count = (context.num_inputs() - GRADIENTS) / 4;
  check(GRADIENTS + 4 * count == context.num_inputs(), "TfppoAdam: there must be a gradient for every variable");
  Size variables{"variables", count};
  const auto of_variables = [&](int n, const char *name) {
    return context.input<float>(n, name, {&variables}, "there must be a scale, a rate and a decay for every variable");
  };
  const float *scales = of_variables(SCALES, "scales"), *rates = of_variables(RATES, "rates");
  const float *decays = of_variables(DECAYS, "decays");
  const float epsilon = *context.input<float>(EPSILON, "epsilon", {});
  const std::vector<Gradient> gradients = gradients_from(context, GRADIENTS, count);
  std::vector<Variable> steps;
  for (int i = 0; i < count; i++) {
    const auto held = [&](int part) {
      return numbers_of_variable(context, GRADIENTS + part * count + i, gradients[i].count);
    };
    steps.push_back({held(1), held(2), held(3), scales[i], rates[i], decays[i]});
  }
  for_each_chunk(gradients, chunks_of(gradients), [&](const Chunk &chunk, const auto *numbers, size_t) {
    step(self, steps[chunk.gradient], chunk.first, numbers, chunk.size, epsilon);
  });
}

static const Registration registration([] {
  if (!products_allowed()) return;
  const char *types = "T: list({float, bfloat16}) >= 1";
  define<NoAttributes, compute_squares>("TfppoSquares", {"gradients: T"}, {"squares: float"}, {types});
  define<Adam, compute_adam>(
      "TfppoAdam",
      {"scales: float", "rates: float", "decays: float", "epsilon: float", "gradients: T",
       "variables: count * resource", "momentums: count * resource", "velocities: count * resource"},
      {}, {types, "count: int >= 1", "share1: float", "share2: float"}, true);
});

}  // namespace
#endif

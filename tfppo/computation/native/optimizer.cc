/* Two TensorFlow operations that make a step of Adam, in one pass over memory each:

   TfppoSquares  of each gradient, the sum of its squares
   TfppoAdam     writes the step into variables and their moments

   Gradients are float32 or bfloat16, and become float32 number by number: no copy of them is made. */
#ifdef __AVX512BF16__
#include "operations.h"
#include "products.h"
#include "variables.h"

namespace {

enum { CHUNK = 1 << 14 }; /* numbers that are added up, or updated, together, so that threads don't matter */

INLINE vec load_numbers(const float *from, int n) { return load_some(from, n); }
INLINE vec load_numbers(const bf16 *from, int n) { return widened(some_rounded(from, n)); }

/* A gradient of either dtype. */
struct Gradient {
  const void *data;
  bool is_rounded;
  int64_t count;
};

/* Calls work(numbers) with the numbers from `first` on, in the gradient's own type. */
template <typename Work>
INLINE void with_numbers(const Gradient &g, int64_t first, Work work) {
  if (g.is_rounded)
    work(static_cast<const bf16 *>(g.data) + first);
  else
    work(static_cast<const float *>(g.data) + first);
}

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
static std::vector<Gradient> gradients_from(TF_OpKernelContext *context, int first, int count, TF_Status *status) {
  std::vector<Gradient> gradients;
  for (int i = 0; i < count && TF_GetCode(status) == TF_OK; i++) {
    TF_Tensor *tensor = nullptr;
    TF_GetInput(context, first + i, &tensor, status);
    if (TF_GetCode(status) != TF_OK) break;
    gradients.push_back({TF_TensorData(tensor), TF_TensorType(tensor) == TF_BFLOAT16, TF_TensorElementCount(tensor)});
    TF_DeleteTensor(tensor);
  }
  return gradients;
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

static void compute_squares(void *, TF_OpKernelContext *context) {
  TF_Status *status = TF_NewStatus();
  const std::vector<Gradient> gradients = gradients_from(context, 0, TF_NumInputs(context), status);
  float *squares = output<float>(context, 0, TF_FLOAT, {TF_NumInputs(context)}, status);
  if (TF_GetCode(status) == TF_OK) {
    const std::vector<Chunk> chunks = chunks_of(gradients);
    std::vector<double> sums(chunks.size()), totals(gradients.size());
    pthread_mutex_lock(&cores);
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < chunks.size(); i++) {
      const Chunk &chunk = chunks[i];
      with_numbers(gradients[chunk.gradient], chunk.first,
                   [&](const auto *numbers) { sums[i] = squares_of(numbers, chunk.size); });
    }
    pthread_mutex_unlock(&cores);
    for (size_t i = 0; i < chunks.size(); i++) totals[chunks[i].gradient] += sums[i];
    for (size_t i = 0; i < totals.size(); i++) squares[i] = totals[i];
  } else {
    TF_OpKernelContext_Failure(context, status);
  }
  TF_DeleteStatus(status);
}

/* The shares of a gradient and of its square in the moments, 1 - beta: float32 betas of nearly 1 would not tell them.
 */
struct Adam {
  float share1, share2;
  void read(TF_OpKernelConstruction *construction, TF_Status *status) {
    attribute(construction, "share1", &share1, status), attribute(construction, "share2", &share2, status);
  }
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

static void compute_adam(void *kernel, TF_OpKernelContext *context) {
  enum { SCALES, RATES, DECAYS, EPSILON, LISTS };
  const Adam *self = static_cast<const Adam *>(kernel);
  TF_Status *status = TF_NewStatus();
  const int count = (TF_NumInputs(context) - LISTS) / 4;
  const float *of_variables[3];
  for (int i = SCALES; i <= DECAYS; i++) {
    int64_t size = 0;
    of_variables[i] = input<float>(context, i, &size, status);
    check(size == count, "TfppoAdam: there must be a scale, a rate and a decay for every variable", status);
  }
  check(LISTS + 4 * count == TF_NumInputs(context), "TfppoAdam: there must be a gradient for every variable", status);
  const float *epsilon = input<float>(context, EPSILON, nullptr, status);
  const std::vector<Gradient> gradients = gradients_from(context, LISTS, count, status);
  std::vector<Variable> variables;
  for (int i = 0; i < count && TF_GetCode(status) == TF_OK; i++) {
    std::shared_ptr<float> held[3];
    for (int part = 0; part < 3; part++)
      held[part] = numbers_of_variable(context, LISTS + (part + 1) * count + i, gradients[i].count, status);
    if (TF_GetCode(status) == TF_OK)
      variables.push_back(
          {held[0], held[1], held[2], of_variables[SCALES][i], of_variables[RATES][i], of_variables[DECAYS][i]});
  }
  if (TF_GetCode(status) == TF_OK) {
    const std::vector<Chunk> chunks = chunks_of(gradients);
    pthread_mutex_lock(&cores);
#pragma omp parallel for schedule(dynamic, 4)
    for (size_t i = 0; i < chunks.size(); i++) {
      const Chunk &chunk = chunks[i];
      with_numbers(gradients[chunk.gradient], chunk.first, [&](const auto *numbers) {
        step(*self, variables[chunk.gradient], chunk.first, numbers, chunk.size, *epsilon);
      });
    }
    pthread_mutex_unlock(&cores);
  } else {
    TF_OpKernelContext_Failure(context, status);
  }
  TF_DeleteStatus(status);
}

}  // namespace

__attribute__((constructor)) static void register_optimizer_ops(void) {
  if (!products_allowed()) return;
  const char *const gradient_types = "T: list({float, bfloat16}) >= 1";
  const char *const squares_in[] = {"gradients: T", nullptr}, *const squares_out[] = {"squares: float", nullptr};
  const char *const squares_attrs[] = {gradient_types, nullptr};
  define<NoAttributes>("TfppoSquares", squares_in, squares_out, squares_attrs, compute_squares);
  const char *const adam_in[] = {"scales: float",
                                 "rates: float",
                                 "decays: float",
                                 "epsilon: float",
                                 "gradients: T",
                                 "variables: count * resource",
                                 "momentums: count * resource",
                                 "velocities: count * resource",
                                 nullptr};
  const char *const adam_out[] = {nullptr};
  const char *const adam_attrs[] = {gradient_types, "count: int >= 1", "share1: float", "share2: float", nullptr};
  define<Adam>("TfppoAdam", adam_in, adam_out, adam_attrs, compute_adam, true);
}
#endif

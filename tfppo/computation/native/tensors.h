/* An operation's inputs and outputs, through TensorFlow's C interface.

   Whatever fails throws a Failure, so that no pointer is used whose tensor is not there, or has another shape. */
#ifndef TFPPO_TENSORS_H
#define TFPPO_TENSORS_H

#include <stdint.h>
#include <string.h>

#include <initializer_list>
#include <memory>
#include <vector>

#include "failure.h"
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/tf_tensor.h"

struct Release {
  void operator()(TF_Tensor *tensor) const { TF_DeleteTensor(tensor); }
  void operator()(TF_Status *status) const { TF_DeleteStatus(status); }
};
using Tensor = std::unique_ptr<TF_Tensor, Release>;
using Status = std::unique_ptr<TF_Status, Release>;

inline void check_status(const Status &status) {
  const TF_Code code = TF_GetCode(status.get());
  if (code != TF_OK) throw Failure(code, TF_Message(status.get()));
}

constexpr int64_t UNKNOWN = -1;
constexpr int64_t LARGEST = 1 << 28; /* of a dimension: int holds some multiples of it */

/* A size that shapes share. The first input that has it sets it, and all others must agree. */
struct Size {
  const char *name;
  int64_t value = UNKNOWN;
  operator int64_t() const { return value; }
};

using Shape = std::initializer_list<Size *>;

/* What an input is called in messages. */
struct Name {
  const char *text;
  int block = -1; /* of a trunk, where it is one of its weights */
  Name(const char *text, int block = -1) : text(text), block(block) {}
};

inline std::ostream &operator<<(std::ostream &to, const Name &name) {
  to << name.text;
  return name.block < 0 ? to : to << " of block " << name.block;
}

inline std::ostream &operator<<(std::ostream &to, Shape shape) {
  to << '[';
  for (const Size *const *size = shape.begin(); size != shape.end(); size++) {
    to << (size == shape.begin() ? "" : ", ") << (*size)->name;
    if ((*size)->value != UNKNOWN) to << " = " << (*size)->value;
  }
  return to << ']';
}

inline std::ostream &operator<<(std::ostream &to, const TF_Tensor &tensor) {
  to << '[';
  for (int axis = 0; axis < TF_NumDims(&tensor); axis++) to << (axis ? ", " : "") << TF_Dim(&tensor, axis);
  return to << ']';
}

/* Refuses a tensor of another shape; sets the sizes that were unknown. The hint says what the shape should fit. */
inline void check_shape(const TF_Tensor &tensor, const Name &name, Shape wanted, const char *hint = "") {
  bool fits = TF_NumDims(&tensor) == int(wanted.size());
  int axis = 0;
  for (const Size *size : wanted) {
    if (!fits) break;
    const int64_t given = TF_Dim(&tensor, axis++);
    fits = given <= LARGEST && (size->value == UNKNOWN || size->value == given);
  }
  check(fits, name, " has shape ", tensor, ", wanted is ", wanted, *hint ? ": " : "", hint);
  axis = 0;
  for (Size *size : wanted) size->value = TF_Dim(&tensor, axis++);
}

/* A running operation's inputs and outputs.

   Data pointers stay valid until the operation ends, as TensorFlow holds the tensors that long. The tensors' own
   handles are given back at once: an input that somebody holds can't be overwritten in place. */
class Context {
 public:
  explicit Context(TF_OpKernelContext *context) : context(context), status(TF_NewStatus()) {}
  TF_OpKernelContext *get() const { return context; }
  int num_inputs() const { return TF_NumInputs(context); }

  /* The n-th input, of any shape. */
  Tensor tensor(int n) {
    TF_Tensor *tensor = nullptr;
    TF_GetInput(context, n, &tensor, status.get());
    check_status(status);
    return Tensor(tensor);
  }

  /* The numbers of the n-th input, which has the shape wanted. */
  template <typename T>
  const T *input(int n, const Name &name, Shape wanted, const char *hint = "") {
    const Tensor given = tensor(n);
    check_shape(*given, name, wanted, hint);
    return static_cast<const T *>(TF_TensorData(given.get()));
  }

  template <typename T>
  T *output(int n, TF_DataType dtype, std::initializer_list<int64_t> dims) {
    size_t size = sizeof(T);
    for (int64_t dim : dims) size *= dim;
    const Tensor made(TF_AllocateOutput(context, n, dtype, dims.begin(), dims.size(), size, status.get()));
    check_status(status);
    return static_cast<T *>(TF_TensorData(made.get()));
  }

  /* The output `to`, to write into, with the numbers of the input `from`: itself where nobody else needs it. */
  template <typename T>
  T *overwritten(int from, const Name &name, Shape wanted, int to, const char *hint = "") {
    const T *old = input<T>(from, name, wanted, hint);
    const std::vector<int64_t> dims = sizes_of(wanted);
    int forwarded = -1;
    const Tensor made(
        TF_ForwardInputOrAllocateOutput(context, &from, 1, to, dims.data(), dims.size(), &forwarded, status.get()));
    check_status(status);
    T *data = static_cast<T *>(TF_TensorData(made.get()));
    const size_t size = TF_TensorByteSize(made.get());
    if (data != old && size) memcpy(data, old, size);
    return data;
  }

 private:
  static std::vector<int64_t> sizes_of(Shape shape) {
    std::vector<int64_t> sizes;
    for (const Size *size : shape) sizes.push_back(size->value);
    return sizes;
  }

  TF_OpKernelContext *context;
  Status status;
};

#endif

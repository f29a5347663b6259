/* What the operations share: TensorFlow's C interface in fewer words, and the order of a block's weights. */
#ifndef TFPPO_OPERATIONS_H
#define TFPPO_OPERATIONS_H

#include <omp.h>
#include <pthread.h>
#include <string.h>

#include <vector>

#include "memory.h"
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

enum { PER_BLOCK = 12, INNER = 8, PER_TRUNK = 2 }; /* weights; the one whose columns are the MLP's width */

/* One region at a time has all the cores: two would wait for each other at every barrier. */
inline pthread_mutex_t cores = PTHREAD_MUTEX_INITIALIZER;

/* While it lives, its operation has all the cores, and memory to compute on; `at` is nullptr where there is none. */
struct Region {
  char *at;
  Region(size_t size, TF_Status *status) {
    pthread_mutex_lock(&cores);
    at = workspace(size);
    if (!at) TF_SetStatus(status, TF_RESOURCE_EXHAUSTED, "there is no memory to compute on");
  }
  ~Region() { pthread_mutex_unlock(&cores); }
};

struct Block {
  const float *norm1_gamma, *norm1_beta, *qkv, *qkv_bias, *out, *out_bias;
  const float *norm2_gamma, *norm2_beta, *in, *in_bias, *back, *back_bias;
};

/* The n-th input's numbers; its tensor is given back, as the operation holds it until it ends.

   This and what follows do nothing where something failed before: TensorFlow's own functions would forget that. */
template <typename T>
static const T *input(TF_OpKernelContext *context, int n, int64_t *dims, TF_Status *status) {
  if (TF_GetCode(status) != TF_OK) return nullptr;
  TF_Tensor *tensor = nullptr;
  TF_GetInput(context, n, &tensor, status);
  if (TF_GetCode(status) != TF_OK) return nullptr;
  for (int i = 0; dims && i < TF_NumDims(tensor); i++) dims[i] = TF_Dim(tensor, i);
  const T *data = static_cast<const T *>(TF_TensorData(tensor));
  TF_DeleteTensor(tensor);
  return data;
}

template <typename T>
static T *output(TF_OpKernelContext *context, int n, TF_DataType dtype, const std::vector<int64_t> &dims,
                 TF_Status *status) {
  if (TF_GetCode(status) != TF_OK) return nullptr;
  size_t size = sizeof(T);
  for (int64_t dim : dims) size *= dim;
  TF_Tensor *tensor = TF_AllocateOutput(context, n, dtype, dims.data(), dims.size(), size, status);
  if (TF_GetCode(status) != TF_OK) return nullptr;
  T *data = static_cast<T *>(TF_TensorData(tensor));
  TF_DeleteTensor(tensor);
  return data;
}

/* An output to write into: the input `from` itself where nobody else needs it, else a copy; of input -1, a new one. */
template <typename T>
static T *overwritten(TF_OpKernelContext *context, int from, int to, TF_DataType dtype,
                      const std::vector<int64_t> &dims, TF_Status *status) {
  if (from < 0) return output<T>(context, to, dtype, dims, status);
  int forwarded = -1;
  const T *old = input<T>(context, from, nullptr, status);
  if (!old) return nullptr;
  TF_Tensor *tensor =
      TF_ForwardInputOrAllocateOutput(context, &from, 1, to, dims.data(), dims.size(), &forwarded, status);
  if (TF_GetCode(status) != TF_OK) return nullptr;
  T *data = static_cast<T *>(TF_TensorData(tensor));
  if (data != old) memcpy(data, old, TF_TensorByteSize(tensor));
  TF_DeleteTensor(tensor);
  return data;
}

/* Fails with a message unless something holds. */
static void check(bool holds, const char *message, TF_Status *status) {
  if (TF_GetCode(status) == TF_OK && !holds) TF_SetStatus(status, TF_INVALID_ARGUMENT, message);
}

/* Reads an attribute, unless something failed before. */
static void attribute(TF_OpKernelConstruction *construction, const char *name, int32_t *to, TF_Status *status) {
  if (TF_GetCode(status) == TF_OK) TF_OpKernelConstruction_GetAttrInt32(construction, name, to, status);
}

static void attribute(TF_OpKernelConstruction *construction, const char *name, float *to, TF_Status *status) {
  if (TF_GetCode(status) == TF_OK) TF_OpKernelConstruction_GetAttrFloat(construction, name, to, status);
}

/* A kernel is its attributes, which T reads. */
template <typename T>
static void *new_kernel(TF_OpKernelConstruction *construction) {
  T *self = new T();
  TF_Status *status = TF_NewStatus();
  self->read(construction, status);
  if (TF_GetCode(status) != TF_OK) TF_OpKernelConstruction_Failure(construction, status);
  TF_DeleteStatus(status);
  return self;
}

struct NoAttributes {
  void read(TF_OpKernelConstruction *, TF_Status *) {}
};

template <typename T>
static void delete_kernel(void *kernel) {
  delete static_cast<T *>(kernel);
}

/* Defines an operation and its kernel on CPUs, of which T has the attributes.

   An operation is stateful where it writes into variables: then it runs even where nobody reads an output. */
template <typename T>
static void define(const char *name, const char *const *inputs, const char *const *outputs, const char *const *attrs,
                   void (*compute)(void *, TF_OpKernelContext *), bool is_stateful = false) {
  TF_Status *status = TF_NewStatus();
  TF_OpDefinitionBuilder *op = TF_NewOpDefinitionBuilder(name);
  for (; *inputs; inputs++) TF_OpDefinitionBuilderAddInput(op, *inputs);
  for (; *outputs; outputs++) TF_OpDefinitionBuilderAddOutput(op, *outputs);
  for (; *attrs; attrs++) TF_OpDefinitionBuilderAddAttr(op, *attrs);
  TF_OpDefinitionBuilderSetIsStateful(op, is_stateful);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, &TF_ShapeInferenceContextSetUnknownShape);
  TF_RegisterOpDefinition(op, status);
  if (TF_GetCode(status) == TF_OK)
    TF_RegisterKernelBuilder(name, TF_NewKernelBuilder(name, "CPU", new_kernel<T>, compute, delete_kernel<T>), status);
  TF_DeleteStatus(status);
}

#endif

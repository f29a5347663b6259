/* Registers operations and their kernels, and lets nothing throw into TensorFlow's C interface. */
#ifndef TFPPO_OPERATIONS_H
#define TFPPO_OPERATIONS_H

#include <stdio.h>

#include <initializer_list>
#include <memory>
#include <new>

#include "tensorflow/c/ops.h"
#include "tensors.h"

/* Works, and reports by a status whatever is thrown. */
template <typename Work, typename Report>
static void guarded(Work work, Report report) noexcept {
  const Status status(TF_NewStatus());
  try {
    return work();
  } catch (const Failure &failure) {
    TF_SetStatus(status.get(), failure.code, failure.what());
  } catch (const std::bad_alloc &) {
    TF_SetStatus(status.get(), TF_RESOURCE_EXHAUSTED, "there is no memory to compute on");
  } catch (const std::exception &error) {
    TF_SetStatus(status.get(), TF_INTERNAL, error.what());
  } catch (...) {
    TF_SetStatus(status.get(), TF_INTERNAL, "an unknown exception");
  }
  report(status.get());
}

/* The attributes of an operation. */
class Attributes {
 public:
  explicit Attributes(TF_OpKernelConstruction *construction) : construction(construction), status(TF_NewStatus()) {}

  int32_t integer(const char *name) {
    int32_t value = 0;
    TF_OpKernelConstruction_GetAttrInt32(construction, name, &value, status.get());
    check_status(status);
    return value;
  }

  float number(const char *name) {
    float value = 0;
    TF_OpKernelConstruction_GetAttrFloat(construction, name, &value, status.get());
    check_status(status);
    return value;
  }

 private:
  TF_OpKernelConstruction *construction;
  Status status;
};

struct NoAttributes {
  explicit NoAttributes(Attributes &) {}
};

/* A kernel is its attributes, which T's constructor reads and checks; nullptr where they are refused. */
template <typename T>
static void *new_kernel(TF_OpKernelConstruction *construction) noexcept {
  T *kernel = nullptr;
  guarded(
      [&] {
        Attributes attributes(construction);
        kernel = new T(attributes);
      },
      [&](TF_Status *status) { TF_OpKernelConstruction_Failure(construction, status); });
  return kernel;
}

template <typename T>
static void delete_kernel(void *kernel) noexcept {
  delete static_cast<T *>(kernel);
}

template <typename T, void (*compute)(const T &, Context &)>
static void run_kernel(void *kernel, TF_OpKernelContext *run) noexcept {
  guarded(
      [&] {
        Context context(run);
        compute(*static_cast<const T *>(kernel), context);
      },
      [&](TF_Status *status) { TF_OpKernelContext_Failure(run, status); });
}

/* Defines an operation and its kernel on CPUs, of which T has the attributes.

   An operation is stateful where it writes into variables: then it runs even where nobody reads an output. */
template <typename T, void (*compute)(const T &, Context &)>
static void define(const char *name, std::initializer_list<const char *> inputs,
                   std::initializer_list<const char *> outputs, std::initializer_list<const char *> attributes,
                   bool is_stateful = false) {
  const Status status(TF_NewStatus());
  TF_OpDefinitionBuilder *op = TF_NewOpDefinitionBuilder(name);
  for (const char *input : inputs) TF_OpDefinitionBuilderAddInput(op, input);
  for (const char *output : outputs) TF_OpDefinitionBuilderAddOutput(op, output);
  for (const char *attribute : attributes) TF_OpDefinitionBuilderAddAttr(op, attribute);
  TF_OpDefinitionBuilderSetIsStateful(op, is_stateful);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, &TF_ShapeInferenceContextSetUnknownShape);
  TF_RegisterOpDefinition(op, status.get()); /* which takes the builder, as the next does */
  check_status(status);
  TF_KernelBuilder *kernel = TF_NewKernelBuilder(name, "CPU", new_kernel<T>, run_kernel<T, compute>, delete_kernel<T>);
  TF_RegisterKernelBuilder(name, kernel, status.get());
  check_status(status);
}

/* The first registration that failed while the library was loaded, which itself has no way to say so. */
[[gnu::visibility("hidden")]] inline char registration_failure[512] = ""; /* of this library alone */

/* Read by who loads the library; empty where all is well. */
extern "C" [[gnu::used, gnu::visibility("default")]] inline const char *tfppo_registration_failure() {
  return registration_failure;
}

/* Calls `definitions` while the library is loaded. */
struct Registration {
  explicit Registration(void (*definitions)()) noexcept {
    guarded(definitions, [](TF_Status *status) {
      if (!*registration_failure)
        snprintf(registration_failure, sizeof(registration_failure), "%s", TF_Message(status));
    });
  }
};

#endif

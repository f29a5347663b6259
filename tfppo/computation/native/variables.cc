/* The one file that takes TensorFlow's C++ interface: what pip installs has no C interface to variables. It is compiled
   for any processor, as the headers are not meant for all instructions. */
#include "variables.h"

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/tensor_util.h"

std::shared_ptr<float> numbers_of_variable(TF_OpKernelContext *context, int input, int64_t count, TF_Status *status) {
  if (TF_GetCode(status) != TF_OK) return nullptr;
  auto *cpp_context = reinterpret_cast<tensorflow::OpKernelContext *>(context);
  tensorflow::core::RefCountPtr<tensorflow::Var> variable;
  const auto found = LookupResource(cpp_context, HandleFromInput(cpp_context, input), &variable);
  if (!found.ok()) {
    TF_SetStatus(status, TF_NOT_FOUND, std::string(found.message()).c_str());
    return nullptr;
  }
  tensorflow::mutex_lock lock(*variable->mu());
  tensorflow::Tensor &held = *variable->tensor();
  if (held.dtype() != tensorflow::DT_FLOAT || held.NumElements() != count) {
    TF_SetStatus(status, TF_INVALID_ARGUMENT, "a variable is not of float32, or not of its gradient's size");
    return nullptr;
  }
  if (!held.RefCountIsOne()) held = tensorflow::tensor::DeepCopy(held);
  const auto kept = std::make_shared<tensorflow::Tensor>(held);
  return {kept, kept->flat<float>().data()};
}

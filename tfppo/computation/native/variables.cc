/* The one file that takes TensorFlow's C++ interface: what pip installs has no C interface to variables. It is compiled
   for any processor, as the headers are not meant for all instructions. */
#include "variables.h"

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/tensor_util.h"

std::shared_ptr<float> numbers_of_variable(Context &context, int input, int64_t count) {
  auto *cpp_context = reinterpret_cast<tensorflow::OpKernelContext *>(context.get());
  check(cpp_context->input(input).NumElements() == 1, "input ", input, " is not the handle of one variable");
  tensorflow::core::RefCountPtr<tensorflow::Var> variable;
  const auto found = LookupResource(cpp_context, HandleFromInput(cpp_context, input), &variable);
  if (!found.ok()) throw Failure(TF_NOT_FOUND, std::string(found.message()));
  tensorflow::mutex_lock lock(*variable->mu());
  tensorflow::Tensor &held = *variable->tensor();
  if (held.dtype() != tensorflow::DT_FLOAT || held.NumElements() != count)
    refuse("input ", input, " is a variable of ", tensorflow::DataTypeString(held.dtype()), ' ',
           held.shape().DebugString(), ", wanted is one of float32, of its gradient's size, ", count);
  if (!held.RefCountIsOne()) held = tensorflow::tensor::DeepCopy(held);
  const auto kept = std::make_shared<tensorflow::Tensor>(held);
  return {kept, kept->flat<float>().data()};
}

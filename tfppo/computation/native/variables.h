/* Variables of TensorFlow, which operations write into. */
#ifndef TFPPO_VARIABLES_H
#define TFPPO_VARIABLES_H

#include <memory>

#include "tensors.h"

/* The `count` numbers of the float variable whose handle is an input, to write into.

   Whoever else reads them keeps what they were: they are copied then. They live as long as the pointer, whatever
   becomes of the variable. Throws a Failure. */
std::shared_ptr<float> numbers_of_variable(Context &context, int input, int64_t count);

#endif

/* How operations fail: they throw, and the boundary to TensorFlow's C interface turns that into a status. */
#ifndef TFPPO_FAILURE_H
#define TFPPO_FAILURE_H

#include <sstream>
#include <stdexcept>
#include <string>

#include "tensorflow/c/tf_status.h"

struct Failure : std::runtime_error {
  TF_Code code;
  Failure(TF_Code code, const std::string &message) : std::runtime_error(message), code(code) {}
};

/* Refuses an input or attribute. The message is its parts, one after another. */
template <typename... Parts>
[[noreturn]] static void refuse(const Parts &...parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Failure(TF_INVALID_ARGUMENT, message.str());
}

/* Refuses unless something holds. */
template <typename... Parts>
static void check(bool holds, const Parts &...parts) {
  if (!holds) refuse(parts...);
}

#endif

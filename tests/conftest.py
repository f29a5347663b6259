"""What holds for all tests and the programs that they run."""

import os

# At the sizes of tests XLA's time is compilation: without LLVM's optimizations it is a third shorter. Set XLA_FLAGS
# (to "" for XLA's own choice) to run them otherwise.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

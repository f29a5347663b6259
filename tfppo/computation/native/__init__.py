"""C++ operations for CPUs that sample, score and update: built when first needed, by the compiler of the machine."""

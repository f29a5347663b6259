"""Sampling's inner steps for CPUs, in C++: built when first needed, by the compiler of the machine."""

"""The algorithm without a line of tfppo: plain loops in NumPy float64, and PyTorch's autograd and optimizers."""

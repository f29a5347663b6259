"""How a model computes: devices, dtypes, and the engines (plain graph, XLA, C++)."""

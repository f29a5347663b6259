"""Text in and out: a byte-level BPE tokenizer with a Python side and an in-graph side."""

"""Keras models: the Transformer with its KV cache, the language model, and the policy with its value head."""

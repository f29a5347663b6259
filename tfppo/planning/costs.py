"""Floating-point operations and bytes of an iteration, counted from the sizes of the model and the batch.

A multiply-add is two operations. Only matrix products are counted, as the rest is small beside them.
"""

from dataclasses import replace

from tfppo.config import ModelConfig

# Sizes by name.
MODEL_SIZES = {
    name: dict(num_layers=layers, hidden_dim=width, num_heads=heads, vocabulary_size=vocabulary)
    for name, layers, width, heads, vocabulary in (
        ("tiny", 4, 256, 4, 8192),
        ("small", 6, 384, 6, 8192),
        ("gpt2", 12, 768, 12, 50257),
        ("1.3b", 24, 2048, 16, 50257),
        ("7b", 32, 4096, 32, 32000),
    )
}
BENCHMARKED = ("tiny", "small", "gpt2", "1.3b")  # of these, what fits one card with reference and moments


def model_of_sizes(*, positions: int, hidden_dim: int, **sizes: int) -> ModelConfig:
    """A ModelConfig from sizes as in MODEL_SIZES, without dropout and with an MLP of four times the width."""
    return ModelConfig(
        hidden_dim=hidden_dim, intermediate_dim=4 * hidden_dim, max_sequence_length=positions, dropout=0.0, **sizes
    )


def block_parameters(model: ModelConfig) -> int:
    """Entries of the matrices of all blocks: query, key, value, output, and the two of the MLP."""
    return model.num_layers * (4 * model.hidden_dim**2 + 2 * model.hidden_dim * model.intermediate_dim)


def num_parameters(model: ModelConfig) -> int:
    """The number of weights of a language model with tied embeddings."""
    width = model.hidden_dim
    vectors = model.num_layers * (9 * width + model.intermediate_dim) + 2 * width
    return block_parameters(model) + vectors + width * (model.vocabulary_size + model.max_sequence_length)


def forward_flops(model: ModelConfig, *, rows: int, length: int, states: int) -> int:
    """Operations of one pass over `rows` sequences of `length` tokens, with logits at `states` positions of each.

    At the other positions, the last block computes only queries, keys and values.
    """
    width = model.hidden_dim
    without = (length - states) * 2 * (width**2 + 2 * width * model.intermediate_dim)
    attention = 4 * width * length * ((model.num_layers - 1) * length + states)
    trunk = length * 2 * block_parameters(model) - without + attention
    return rows * (trunk + states * 2 * width * model.vocabulary_size)


def update_flops(
    model: ModelConfig, *, rows: int, prompt_length: int, response_length: int, separate_critic: bool = False
) -> int:
    """Operations of one gradient step over `rows` episodes: a backward pass is twice a forward pass."""
    sizes = dict(rows=rows, length=prompt_length + response_length - 1, states=response_length)
    flops = forward_flops(model, **sizes)
    if separate_critic:
        flops += forward_flops(replace(model, vocabulary_size=0), **sizes)
    return 3 * flops


def prefill_flops(model: ModelConfig, *, rows: int, prompt_length: int) -> int:
    """Operations of the pass over the prompts before sampling."""
    return forward_flops(model, rows=rows, length=prompt_length, states=1)


def decode_flops(model: ModelConfig, *, rows: int, context: float) -> float:
    """Operations of sampling one token for each row, with attention to `context` positions."""
    attention = 4 * model.num_layers * model.hidden_dim * context
    return rows * (2 * block_parameters(model) + attention + 2 * model.hidden_dim * model.vocabulary_size)


def decode_bytes(model: ModelConfig, *, rows: int, context: float, bytes_per_weight: int) -> float:
    """Bytes that one step of sampling reads: all weights, and the keys and values of `context` positions."""
    weights = block_parameters(model) + model.hidden_dim * model.vocabulary_size
    cache = 2 * model.num_layers * model.hidden_dim * context * rows
    return bytes_per_weight * (weights + cache)

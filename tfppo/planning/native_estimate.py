"""What a phase of PPO holds through the C++ operations, in mixed_bfloat16 on a CPU: counted from their source.

The counts are bytes of bfloat16 (2) and float32 (4) numbers; rows of matrices have the operations' own padding.
"""

from tfppo.config import ModelConfig
from tfppo.planning import costs
from tfppo.planning.workload import Workload

# Of every position, in units of the width D, an MLP of 4 D apart: what a block keeps for its gradient. Float32: input,
# and with attention added. Bfloat16: results of two norms, query, key, value, context. And of the MLP, before GELU.
KEPT_BYTES = 4 * 2 + 2 * 6
KEPT_MLP_BYTES = 2
# What a pass without a gradient computes on: the same of one block at a time; and of the MLP, after GELU.
FORWARD_BYTES, FORWARD_MLP_BYTES = KEPT_BYTES, KEPT_MLP_BYTES + 2
# What a backward pass computes on besides. Float32: the gradients of a block and of its norms' results. Bfloat16: that
# of the block rounded, of the context, of query, key and value. And of the MLP: its activations, their gradients, and
# either of them transposed.
BACKWARD_BYTES, BACKWARD_MLP_BYTES = 4 * 2 + 2 * 5, 2 * 3
GRADIENT_BYTES = {"matrices": 2, "others": 4}  # a weight: of the blocks' matrices, and of all else
ADAM_BYTES = 6 * 4  # a weight: weight and two moments, read and written
PADDING = 32  # numbers: rows of bfloat16 matrices fill whole panels of so many, and one more


def padded(width: int) -> int:
    """Numbers from one row to the next."""
    return -(-width // PADDING) * PADDING + PADDING


def native_phases(model: ModelConfig, workload: Workload, trained: int) -> dict[str, dict[str, float]]:
    """{phase: {part: bytes}} of a Workload of one device. Args: trained: how many weights have a gradient."""
    trunks = 1 if workload.critic == "shared" else 2
    tokens, parts = workload.rows * workload.length, workload.micro_rows * workload.length
    blocks = trunks * costs.block_parameters(model)
    output = model.vocabulary_size * model.hidden_dim
    forward = positions_bytes(model, FORWARD_BYTES, FORWARD_MLP_BYTES)
    kept = trunks * model.num_layers * parts * positions_bytes(model, KEPT_BYTES, KEPT_MLP_BYTES)
    gradients = gradient_bytes(model, workload, trained)
    summed = 4 * trained if workload.accumulation_steps > 1 else 0
    return {
        "sampling": {
            "packed weights": 2 * (blocks + output),
            "KV cache": 2 * trunks * 2 * model.num_layers * tokens * model.hidden_dim,
            "logits or prompt pass": workload.rows
            * max(4 * model.vocabulary_size, workload.prompt_length * (forward + 4 * model.hidden_dim)),
        },
        "reference": {"one layer": tokens * (forward + 4 * model.hidden_dim)},
        "gradients": {
            "gradients": gradients + summed,
            "activations": kept,
            "logits": 2 * workload.micro_rows * workload.response_length * padded(model.vocabulary_size),
            "backward pass": parts * positions_bytes(model, BACKWARD_BYTES, BACKWARD_MLP_BYTES),
        },
        "optimizer": {"gradients": summed or gradients},
    }


def positions_bytes(model: ModelConfig, widths: int, mlp_widths: int) -> int:
    """Bytes of a position, of so many bytes a unit of the width and of the MLP's."""
    return widths * padded(model.hidden_dim) + mlp_widths * padded(model.intermediate_dim)


def gradient_bytes(model: ModelConfig, workload: Workload, trained: int) -> int:
    """Bytes of one part's gradients."""
    matrices = (1 if workload.critic == "shared" else 2) * costs.block_parameters(model)
    return GRADIENT_BYTES["matrices"] * matrices + GRADIENT_BYTES["others"] * (trained - matrices)


def optimizer_traffic(model: ModelConfig, workload: Workload, trained: int) -> int:
    """Bytes that a step of the optimizer moves: the norm and Adam read the gradients, Adam all that it keeps."""
    read = gradient_bytes(model, workload, trained) if workload.accumulation_steps == 1 else 4 * trained
    return 2 * read + ADAM_BYTES * trained

"""Memory of each phase of PPO with the C++ operations, in mixed_bfloat16 on a CPU, counted from their source.

The counts are bytes of bfloat16 (2) and float32 (4) numbers; matrices have the row padding of the operations.
"""

from tfppo.config import ModelConfig
from tfppo.planning import costs
from tfppo.planning.workload import Workload

# Bytes that a block keeps for its gradient, for each position and unit of the width D. Float32: the residual stream
# before and after attention. Bfloat16: results of two norms, query, key, value, context. The MLP keeps, for each unit
# of its own width, its activations before GELU.
KEPT_BYTES = 4 * 2 + 2 * 6
KEPT_MLP_BYTES = 2
# Bytes of a pass without a gradient: the same for one block at a time, and the MLP also after GELU.
FORWARD_BYTES, FORWARD_MLP_BYTES = KEPT_BYTES, KEPT_MLP_BYTES + 2
# Further bytes of a backward pass. Float32: the gradients of a block and of the results of its norms. Bfloat16: the
# gradients of the block (rounded), of context, query, key and value. In the MLP: activations, their gradients, and one
# of the two transposed.
BACKWARD_BYTES, BACKWARD_MLP_BYTES = 4 * 2 + 2 * 5, 2 * 3
GRADIENT_BYTES = {"matrices": 2, "others": 4}  # for each weight of the matrices of blocks, and of the rest
ADAM_BYTES = 6 * 4  # for each weight: weight and two moments, read and written
PADDING = 32  # rows of bfloat16 matrices fill whole panels of 32 numbers, and one panel more


def padded(width: int) -> int:
    """The row stride, in numbers, of a bfloat16 matrix."""
    return -(-width // PADDING) * PADDING + PADDING


def native_phases(model: ModelConfig, workload: Workload, trained: int) -> dict[str, dict[str, float]]:
    """Memory of each phase on one device, as {phase: {part: bytes}}. Args: trained: number of trained weights."""
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
    """Bytes of one position, from the bytes for each unit of the width and of the width of the MLP."""
    return widths * padded(model.hidden_dim) + mlp_widths * padded(model.intermediate_dim)


def gradient_bytes(model: ModelConfig, workload: Workload, trained: int) -> int:
    """Bytes of the gradients of one micro-batch."""
    matrices = (1 if workload.critic == "shared" else 2) * costs.block_parameters(model)
    return GRADIENT_BYTES["matrices"] * matrices + GRADIENT_BYTES["others"] * (trained - matrices)


def optimizer_traffic(model: ModelConfig, workload: Workload, trained: int) -> int:
    """Bytes that an optimizer step moves: norm and Adam read the gradients, Adam also weights and moments."""
    read = gradient_bytes(model, workload, trained) if workload.accumulation_steps == 1 else 4 * trained
    return 2 * read + ADAM_BYTES * trained

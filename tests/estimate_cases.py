"""A model, a workload and a device that are small enough to work out by hand."""

import dataclasses

from tfppo.config import ModelConfig
from tfppo.planning.estimate import estimate
from tfppo.planning.workload import Device, Workload

# Small enough for the back of an envelope: 2 layers of width 4, 300 tokens, 3 + 5 positions of which 7 are computed.
MODEL = ModelConfig(
    num_layers=2, hidden_dim=4, num_heads=2, intermediate_dim=16, vocabulary_size=300, max_sequence_length=8
)
EPISODES = dict(rollout_batch_size=8, prompt_length=3, response_length=5)
WORKLOAD = Workload(**EPISODES, ppo_epochs=3, num_minibatches=2, accumulation_steps=2, dtype="float32", num_replicas=2)
# A million operations and a million bytes a second; a kilobyte is a millionth of a GB.
SPEEDS = dict(peak_tflops=1e-6, bandwidth_gb_s=1e-3, memory_gb=1e-3, interconnect_gb_s=1e-3)
DEVICE = Device(**SPEEDS, update_efficiency=0.5, decode_efficiency=0.25, base_memory_gb=1e-6)
CPU = dataclasses.replace(DEVICE, allocator="growing")
# Matrices: 2 * (4 * 4 * 4 + 2 * 4 * 16). Vectors: 2 * (9 * 4 + 16) + 2 * 4 = 112. Embeddings: 4 * (300 + 8) = 1232.
MATRICES = 384
WEIGHTS = 1728
TRAINED = WEIGHTS + 5  # and the value head
# A part's own gradients in mixed_bfloat16: 2 bytes of an entry of the blocks' matrices, 4 of all else, biases included.
MIXED = 2 * MATRICES + 4 * (TRAINED - MATRICES)
NATIVE = dict(native=True, dtype="mixed_bfloat16", num_replicas=1)


def of(workload=WORKLOAD, device=DEVICE, model=MODEL, **changes):
    """The estimate, with some fields of the workload changed."""
    return estimate(model, dataclasses.replace(workload, **changes), device)


def seconds_of(result):
    return {span.name: span.seconds for span in result.spans}

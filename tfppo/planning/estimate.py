"""Estimates memory and time of a PPO iteration from the sizes alone, without running anything.

`tfppo.planning.costs` counts the operations. This module adds what is in memory in each phase, and how long a device
takes. docs/scaling.md explains the formulas and compares them with measured runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tfppo.config import ModelConfig
from tfppo.ops.sizes import BLOCK, LENGTH_FOR_BLOCKS, LOGITS_AT_ONCE
from tfppo.planning import costs
from tfppo.planning.native_estimate import native_phases, optimizer_traffic
from tfppo.planning.workload import Device, Workload

GIGA, TERA = 1e9, 1e12

# Calibration. The buffer assignment of XLA shows what compiled functions hold, the plain graph of a bfloat16 update on
# a CPU shows what that keeps; the rest is counted in the source of the optimizer and of the types.
FLOAT32_BYTES = 4  # weights, moments, sums of gradients and attention weights are float32 under every dtype
# Bytes of what matrix products read and write: activations, cache, logits, gradients of the matrices.
COMPUTE_BYTES = {"float32": 4, "mixed_bfloat16": 2}
KEPT_WIDTHS = 8  # [T, D] arrays of a layer kept for the backward pass: 2 norms, query, key, value, context, 2 residuals
KEPT_MLP_WIDTHS = 3  # [T, 4D] arrays that are kept: before GELU, its tanh, after GELU
# The same for a bfloat16 update on a CPU without XLA, which recomputes only the inside of GELU.
PLAIN_KEPT_WIDTHS = 14  # for 2 norms: centred, scaled (both float32, so 8), result; query, key, value, context
PLAIN_KEPT_MLP_WIDTHS = 2  # before and after GELU, which is compiled by itself
LAYER_WIDTHS = 3  # [T, D] arrays alive at a time in a forward pass that keeps nothing: residual stream, two more
LAYER_MLP_WIDTHS = 2  # [T, 4D] arrays alive at a time there: before and after GELU
LAYER_SCORES = 2  # [H, T, T] arrays alive at a time there: scores and their softmax
# The same of attention by blocks, of a block of queries and one of keys; backward, the gradients of both besides.
BACKWARD_SCORES = 4
BACKWARD_WIDTHS = 3  # float32 [T, D] arrays there: the gradients of queries, keys and values so far
SAMPLING_LOGITS = 3  # float32 [V] arrays of a row in a sampling step, besides logits: exponentials, blocks, softmax
REFERENCE_LOGITS = 1  # float32 [R, V] arrays in the reference pass, besides the logits: softmax
# Bytes for each logit of a micro-batch: logits, gradient and one array of the softmax in float32; or logits and
# gradient in bfloat16 and two arrays of the softmax in float32.
UPDATE_LOGIT_BYTES = 12
# Float32 numbers that an optimizer step reads and writes for each weight; a bfloat16 gradient counts as float32. On one
# replica: norm 1, clip 1, Adam 6 (weight and moments, read and written; it finds the scaled gradient in the cache).
OPTIMIZER_PASSES = 8
MIRRORED_OPTIMIZER_PASSES = 10  # on several replicas all gradients are clipped first: one more write and read
ACCUMULATION_PASSES = 3  # the same for adding the gradient of a further micro-batch: two reads, one write
ROLLOUT_PROMPT_FIELDS = 2  # [B, P] arrays of four-byte numbers: ids and mask
ROLLOUT_RESPONSE_FIELDS = 12  # [B, R] arrays of four-byte numbers: uniforms 1, Rollout 5, added by Targets 6
BACKWARD_SHARE = 2 / 3  # share of the backward pass in a gradient computation: it costs two forward passes


@dataclass(kw_only=True, frozen=True)
class Memory:
    """Bytes on one device, by part.

    Args: held: in memory during the whole iteration; phases: what each phase needs besides, by name, in order.
    """

    held: dict[str, float]
    phases: dict[str, dict[str, float]]
    allocator: str

    @property
    def largest_phase(self) -> str:
        """The name of the phase that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def total(self) -> float:
        """Peak bytes, with the allocator of the device."""
        *blocks, optimizer = (sum(parts.values()) for parts in self.phases.values())
        if self.allocator == "growing":
            # A compiled call takes one block: a new one, unless an earlier block is large enough. The small buffers of
            # the optimizer fit into any block.
            blocks = [sum(size for i, size in enumerate(blocks) if size > max(blocks[:i], default=0))]
        return sum(self.held.values()) + max(*blocks, optimizer)


@dataclass(kw_only=True, frozen=True)
class Span:
    """A part of an iteration. Args: limit: what bounds its time, "compute", "bandwidth" or "interconnect"."""

    phase: str
    name: str
    seconds: float
    limit: str


@dataclass(kw_only=True, frozen=True)
class Estimate:
    """Memory and time of one iteration, from `estimate`."""

    num_parameters: int  # trained parameters
    memory: Memory
    spans: tuple[Span, ...]
    response_tokens: int  # sampled by all replicas
    fits: bool
    all_reduce_could_hide: bool  # behind the backward pass of the last micro-batch of a step, if it were started early

    @property
    def seconds(self) -> float:
        """Seconds of the whole iteration, without the reward functions."""
        return sum(span.seconds for span in self.spans)

    def phase_seconds(self, phase: str) -> float:
        """Seconds of one phase."""
        return sum(span.seconds for span in self.spans if span.phase == phase)

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens for each second of the iteration."""
        return self.response_tokens / self.seconds

    @property
    def limit(self) -> str:
        """What bounds the iteration: "memory" where it does not fit, else the limit with most of the time."""
        if not self.fits:
            return "memory"
        seconds = {span.limit: 0.0 for span in self.spans}
        for span in self.spans:
            seconds[span.limit] += span.seconds
        return max(seconds, key=lambda limit: seconds[limit])


def estimate(model: ModelConfig, workload: Workload, device: Device) -> Estimate:
    """Memory and time of one iteration on `workload.num_replicas` such devices. Raises: UserError."""
    for part in (model, workload, device):
        part.validate()
    memory = memory_of(model, workload, device)
    spans = time_of(model, workload, device)
    seconds = {span.name: span.seconds for span in spans}
    backward = BACKWARD_SHARE * seconds["forward and backward"] / workload.accumulation_steps
    return Estimate(
        num_parameters=trained_parameters(model, workload),
        memory=memory,
        spans=spans,
        response_tokens=workload.rollout_batch_size * workload.response_length,
        fits=memory.total <= device.memory_gb * GIGA,
        all_reduce_could_hide=seconds["all-reduce"] <= backward,
    )


def critic_parameters(model: ModelConfig, workload: Workload) -> int:
    """Weights of the critic: its value head, and the trunk with token embedding of a separate critic."""
    head = model.hidden_dim + 1
    return head + (costs.num_parameters(model) if workload.critic == "separate" else 0)


def trained_parameters(model: ModelConfig, workload: Workload) -> int:
    """The number of weights that are trained: each has a gradient and two moments."""
    return costs.num_parameters(model) + critic_parameters(model, workload)


def memory_of(model: ModelConfig, workload: Workload, device: Device) -> Memory:
    """Bytes on each device: under MirroredStrategy every replica holds all weights, all moments and the rollout."""
    weights, trained = costs.num_parameters(model), trained_parameters(model, workload)
    compute, trunks = COMPUTE_BYTES[workload.dtype], len(_trunks(model, workload))
    cast, update_cast = _cast_bytes(workload.dtype), _cast_bytes(workload.dtype_of_update)
    gradients = _gradient_bytes(model, workload)
    logits = workload.rows * model.vocabulary_size  # at one position
    update_logits = workload.micro_rows * workload.response_length * model.vocabulary_size
    numbers = ROLLOUT_PROMPT_FIELDS * workload.prompt_length + ROLLOUT_RESPONSE_FIELDS * workload.response_length
    held = {
        "process": device.base_memory_gb * GIGA,
        "policy weights": FLOAT32_BYTES * weights,
        "critic weights": FLOAT32_BYTES * critic_parameters(model, workload),
        "reference weights": FLOAT32_BYTES * weights,
        "optimizer moments": 2 * FLOAT32_BYTES * trained,
        "rollout": FLOAT32_BYTES * workload.rollout_batch_size * numbers,
    }
    prompt_pass = _layer_bytes(model, rows=workload.rows, length=workload.prompt_length, compute=compute)
    reference_pass = _layer_bytes(model, rows=workload.rows, length=workload.length, compute=compute)
    phases: dict[str, dict[str, float]] = {
        "sampling": {
            "cast weights": cast * trained,
            "stacked blocks": _stack_bytes(model, workload.dtype, device),
            "KV cache": compute * trunks * _cache_numbers(model, workload),
            "logits or prompt pass": max((compute + FLOAT32_BYTES * SAMPLING_LOGITS) * logits, prompt_pass),
        },
        "reference": {
            "cast weights": cast * weights,
            "stacked blocks": _stack_bytes(model, workload.dtype, device),
            # The reference reads the whole rollout at once.
            "logits or one layer": max(
                (compute + FLOAT32_BYTES * REFERENCE_LOGITS) * min(workload.response_length * logits, LOGITS_AT_ONCE),
                reference_pass,
            ),
        },
        "gradients": {
            "cast weights": update_cast * trained,
            # With accumulation, the sum so far is in memory beside the gradients of a micro-batch.
            "gradients": gradients + (FLOAT32_BYTES * trained if workload.accumulation_steps > 1 else 0),
            "stacked blocks": _update_stack_bytes(model, workload, device),
            "activations": trunks * _kept_bytes(model, workload, device),
            # When the backward pass reaches the layers, the logits are freed, and the scores have a gradient.
            "logits or scores": max(
                UPDATE_LOGIT_BYTES * min(update_logits, LOGITS_AT_ONCE), _backward_bytes(model, workload)
            ),
        },
        "optimizer": _optimizer_parts(model, workload),
    }
    if workload.native:  # the C++ operations return large arrays to the system
        return Memory(held=held, phases=native_phases(model, workload, trained), allocator="pool")
    return Memory(held=held, phases=phases, allocator=device.allocator)


def time_of(model: ModelConfig, workload: Workload, device: Device) -> tuple[Span, ...]:
    """The parts of an iteration, which run one after the other, without overlap."""
    products = device.peak_tflops * TERA * device.update_efficiency
    update_products = (device.update_peak_tflops or device.peak_tflops) * TERA * device.update_efficiency
    bandwidth = device.bandwidth_gb_s * GIGA
    prompts = dict(rows=workload.rows, prompt_length=workload.prompt_length)
    prefill = sum(costs.prefill_flops(trunk, **prompts) for trunk in _trunks(model, workload))
    reference = costs.forward_flops(model, rows=workload.rows, length=workload.length, states=workload.response_length)
    update = workload.ppo_epochs * costs.update_flops(
        model,
        rows=workload.rows,
        prompt_length=workload.prompt_length,
        response_length=workload.response_length,
        separate_critic=workload.critic == "separate",
    )
    trained = FLOAT32_BYTES * trained_parameters(model, workload)
    passes = OPTIMIZER_PASSES if workload.num_replicas == 1 else MIRRORED_OPTIMIZER_PASSES
    traffic = passes * trained
    if workload.native:
        traffic = optimizer_traffic(model, workload, trained_parameters(model, workload))
    step = (traffic + ACCUMULATION_PASSES * (workload.accumulation_steps - 1) * trained) / bandwidth
    ring = all_reduce_seconds(trained, workload.num_replicas, device.interconnect_gb_s)
    return (
        Span(phase="sampling", name="prompts", seconds=prefill / products, limit="compute"),
        *_decoding(model, workload, device),
        Span(phase="reference", name="forward", seconds=reference / products, limit="compute"),
        Span(phase="update", name="forward and backward", seconds=update / update_products, limit="compute"),
        Span(phase="update", name="optimizer", seconds=workload.num_steps * step, limit="bandwidth"),
        Span(phase="update", name="all-reduce", seconds=workload.num_steps * ring, limit="interconnect"),
    )


def all_reduce_seconds(size: float, num_replicas: int, interconnect_gb_s: float) -> float:
    """Seconds of a ring all-reduce of `size` bytes: 2 (n - 1) / n of them pass through each link."""
    return 2 * (num_replicas - 1) / num_replicas * size / (interconnect_gb_s * GIGA)


def _decoding(model: ModelConfig, workload: Workload, device: Device) -> Iterator[Span]:
    """All steps of sampling but the first, whose token comes from the pass over the prompts.

    Weights and cache are read one after the other, so each part takes the longer of its compute and memory time. The
    cache has its full length from the first step on, and every step reads all of it. Responses are assumed to have full
    length; where they stop earlier, stopped rows leave the batch and sampling is faster.
    """
    trunks, rows, width = _trunks(model, workload), workload.rows, COMPUTE_BYTES[workload.dtype]

    def cost(context):
        step = dict(rows=rows, context=context)
        flops = sum(costs.decode_flops(trunk, **step) for trunk in trunks)
        return flops, sum(costs.decode_bytes(trunk, **step, bytes_per_weight=width) for trunk in trunks)

    weights = cost(context=0)
    cache = (both - one for both, one in zip(cost(context=workload.length), weights, strict=True))
    for name, (flops, traffic) in (("weights", weights), ("KV cache", cache)):
        compute, memory = flops / (device.peak_tflops * TERA), traffic / (device.bandwidth_gb_s * GIGA)
        yield Span(
            phase="sampling",
            name=f"decoding, {name}",
            seconds=(workload.response_length - 1) * max(compute, memory) / device.decode_efficiency,
            limit="compute" if compute > memory else "bandwidth",
        )


def _trunks(model: ModelConfig, workload: Workload) -> list[ModelConfig]:
    """The models that run in sampling: the actor, and a separate critic, which has no logits."""
    return [model] if workload.critic == "shared" else [model, replace(model, vocabulary_size=0)]


def _cache_numbers(model: ModelConfig, workload: Workload) -> int:
    """Numbers in the KV cache of a replica, over all layers of one trunk."""
    return 2 * model.num_layers * workload.rows * workload.length * model.hidden_dim


def _layer_bytes(model: ModelConfig, *, rows: int, length: int, compute: int) -> int:
    """Peak bytes of one layer in a pass that keeps nothing: of its attention or its MLP, whichever is more."""
    tokens = rows * length
    scores = FLOAT32_BYTES * LAYER_SCORES * rows * model.num_heads * _scores_at_once(length)
    attention = tokens * compute * LAYER_WIDTHS * model.hidden_dim + scores
    mlp = tokens * compute * (model.hidden_dim + LAYER_MLP_WIDTHS * model.intermediate_dim)
    return max(attention, mlp)


def _scores_at_once(length: int) -> int:
    """Pairs of positions whose scores are in memory at a time, for each row and head of a layer."""
    return length**2 if length < LENGTH_FOR_BLOCKS else BLOCK**2


def _backward_bytes(model: ModelConfig, workload: Workload) -> int:
    """Bytes of the backward pass of a layer's attention in a micro-batch, besides what is kept for it."""
    scores = workload.micro_rows * model.num_heads * _scores_at_once(workload.length)
    if workload.length < LENGTH_FOR_BLOCKS:
        return FLOAT32_BYTES * scores
    widths = BACKWARD_WIDTHS * workload.micro_rows * workload.length * model.hidden_dim
    return FLOAT32_BYTES * (BACKWARD_SCORES * scores + widths)


def _cast_bytes(dtype: str) -> int:
    """Bytes for each weight of the copy that is cast once for each call; none in float32."""
    return COMPUTE_BYTES[dtype] if dtype != "float32" else 0


def _gradient_bytes(model: ModelConfig, workload: Workload) -> int:
    """Bytes of the gradients of a micro-batch.

    The matrices of the blocks are cast once, so their gradients are in the dtype of the update; those of embeddings,
    norms and value head are in float32. Biases are counted with the latter, although they are cast too.
    """
    matrices = len(_trunks(model, workload)) * costs.block_parameters(model)
    others = trained_parameters(model, workload) - matrices
    return COMPUTE_BYTES[workload.dtype_of_update] * matrices + FLOAT32_BYTES * others


def _stack_bytes(model: ModelConfig, dtype: str, device: Device) -> float:
    """Bytes of the float32 weights of all blocks but the last, which a GPU's program reads from stacks.

    In a narrower dtype the stacks are the cast weights. A CPU's programs have none.
    """
    if device.allocator != "pool" or dtype != "float32":
        return 0
    return FLOAT32_BYTES * costs.block_parameters(model) * (model.num_layers - 1) / model.num_layers


def _update_stack_bytes(model: ModelConfig, workload: Workload, device: Device) -> float:
    """Bytes of the stacks of an update: on one GPU of both moments, too, and of the weights in any dtype."""
    trunks = len(_trunks(model, workload))
    if workload.num_replicas == 1:
        return 3 * trunks * _stack_bytes(model, "float32", device)
    return trunks * _stack_bytes(model, workload.dtype_of_update, device)


def _optimizer_parts(model: ModelConfig, workload: Workload) -> dict[str, float]:
    """Bytes of the gradients of a minibatch, and of their scaled copies for the optimizer."""
    summed = FLOAT32_BYTES * trained_parameters(model, workload)
    if workload.num_replicas > 1:
        # Cast to float32, summed, clipped: at most two whole sets at a time.
        return {"gradients": summed, "scaled copies": summed}
    width = model.hidden_dim
    largest = width * max(model.vocabulary_size, model.max_sequence_length, 3 * width, model.intermediate_dim)
    gradients = summed if workload.accumulation_steps > 1 else _gradient_bytes(model, workload)
    return {
        "gradients": gradients,
        "scaled copies": FLOAT32_BYTES * largest,
    }  # copies are made for one variable at a time


def _kept_bytes(model: ModelConfig, workload: Workload, device: Device) -> int:
    """Bytes of the activations that one trunk keeps for the backward pass of a micro-batch."""
    compute, is_full = COMPUTE_BYTES[workload.dtype_of_update], workload.dtype_of_update == "float32"
    widths, mlp_widths = KEPT_WIDTHS, KEPT_MLP_WIDTHS
    if device.allocator == "growing" and not is_full:
        widths, mlp_widths = PLAIN_KEPT_WIDTHS, PLAIN_KEPT_MLP_WIDTHS
    numbers = widths * model.hidden_dim + mlp_widths * model.intermediate_dim
    # The backward pass of the softmax needs it in float32, the product with the values in the compute dtype. By blocks,
    # that of each query is made anew from the log of its sum.
    scores = (FLOAT32_BYTES if is_full else FLOAT32_BYTES + compute) * model.num_heads * workload.length
    if workload.length >= LENGTH_FOR_BLOCKS:
        scores = FLOAT32_BYTES * model.num_heads
    return model.num_layers * workload.micro_rows * workload.length * (compute * numbers + scores)

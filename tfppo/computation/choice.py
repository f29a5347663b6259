"""The choice among engines: the one place where settings, devices and what each engine can compute meet.

C++ is taken on CPUs where it can be built and computes the model; else XLA, but for bfloat16 on CPUs, whose products
are fast outside of XLA only. On GPUs XLA computes everything, in programs of `fixed_shapes`. A setting that insists on
what cannot be had is an error.
"""

from tfppo.cluster import this_cluster
from tfppo.computation.computation import Chosen, Computation
from tfppo.computation.devices import (
    WIDTH_FOR_BFLOAT16,
    has_fast_bfloat16,
    has_gpu,
    resolve_jit_compile,
    resolve_update_dtype,
)
from tfppo.computation.graph import GraphEngine
from tfppo.computation.native.availability import (
    BFLOAT16_SAMPLING,
    BFLOAT16_TRAINING,
    find_operations,
    refusal_to_sample,
    refusal_to_update,
)
from tfppo.computation.native.engine import NativeEngine
from tfppo.config import PpoConfig, SamplingConfig


def choose_computation(ppo: PpoConfig, sampling: SamplingConfig, *, width: int, architecture: str) -> Computation:
    """The engines with which PPO samples, scores and updates a model of this width and architecture.

    With `rollout_dtype` "auto", rollouts use the dtype of the update where one engine does both, C++ or XLA on a GPU:
    the policy that samples and the policy that learns then agree as closely as their dtype can resolve.

    Raises: UserError where a setting insists on what cannot be had.
    """
    update_dtype = resolve_update_dtype(ppo.update_dtype, width, ppo.dtype)
    update = _choose_update(ppo, update_dtype, _why_dtype(ppo, width, update_dtype), architecture)
    rollout_dtype = ppo.rollout_dtype
    trains_natively = isinstance(update.engine, NativeEngine)
    if rollout_dtype == "auto":
        agrees = trains_natively and sampling.native is not False or has_gpu()
        rollout_dtype = update_dtype if agrees else ppo.dtype
    if trains_natively and rollout_dtype == "mixed_bfloat16":
        scoring = Chosen(engines=(update.engine,), reason="as the update")
    else:
        scoring = _choose_graph(sampling.jit_compile, rollout_dtype, "sampling.jit_compile")
    return Computation(
        # Workers must sample by the same engine, and their clocks would not agree.
        sampling=choose_sampling(
            sampling, rollout_dtype, architecture=architecture, measures=this_cluster().count == 1
        ),
        scoring=scoring,
        update=update,
    )


def choose_sampling(sampling: SamplingConfig, dtype: str, *, architecture: str, measures: bool = False) -> Chosen:
    """The engine that samples in a Keras dtype policy, or two to choose from.

    Args: measures: whether the first call shall find out if XLA or the plain graph is faster. This applies only if
        C++ is not used, `sampling.jit_compile` is not set, and there is no GPU: there XLA is several times as fast.
    Raises: UserError where `sampling.native` insists on what cannot be had.
    """
    ops, reason = find_operations(
        "sampling.native",
        sampling.native,
        dtype=dtype,
        architecture=architecture,
        refusal=refusal_to_sample(dtype),
        needs=None if dtype == "float32" else BFLOAT16_SAMPLING,
    )
    if ops is not None:
        compiles_filters = sampling.jit_compile is not False
        return Chosen(engines=(NativeEngine(ops, dtype, compiles_filters),), reason=reason)
    chosen = _choose_graph(sampling.jit_compile, dtype, "sampling.jit_compile")
    if not measures or sampling.jit_compile is not None or has_gpu():
        return Chosen(engines=chosen.engines, reason=f"{chosen.reason}; {reason}")
    other = GraphEngine(dtype, not chosen.engine.compiled)
    return Chosen(engines=(chosen.engine, other), reason=f"the faster one by the first batch; {reason}")


def _choose_update(ppo, dtype, why_dtype, architecture):
    ops, reason = find_operations(
        "ppo.native",
        ppo.native,
        dtype=dtype,
        architecture=architecture,
        refusal=refusal_to_update(ppo, dtype),
        needs=BFLOAT16_TRAINING,
    )
    if ops is not None:
        return Chosen(engines=(NativeEngine(ops, dtype),), reason=f"{reason}; {why_dtype}")
    graph = _choose_graph(ppo.jit_compile, dtype, "ppo.jit_compile", recomputes=ppo.gradient_checkpointing)
    return Chosen(engines=graph.engines, reason=f"{graph.reason}; {why_dtype}; {reason}")


def _choose_graph(jit_compile, dtype, setting, recomputes=False):
    compiled = resolve_jit_compile(jit_compile, dtype)
    engine = GraphEngine(dtype, compiled, recomputes, fixed_shapes=compiled and has_gpu())
    reason = f"{setting} says so" if jit_compile is not None else _rule_of(engine)
    return Chosen(engines=(engine,), reason=reason)


def _rule_of(engine):
    if engine.fixed_shapes:
        return "one program for all lengths, as on every GPU"
    return "the default" if engine.compiled else "bfloat16 on a CPU is faster outside of XLA"


def _why_dtype(ppo, width, dtype):
    if ppo.update_dtype != "auto":
        return "ppo.update_dtype says the dtype"
    if dtype == ppo.dtype == "mixed_bfloat16":
        return "ppo.dtype says the dtype"
    if dtype == "mixed_bfloat16":
        return "bfloat16 is fast here"
    narrow = f"bfloat16 is chosen from width {WIDTH_FOR_BFLOAT16} on, and this model has {width}"
    return narrow if has_fast_bfloat16() else "bfloat16 is not fast here"

"""Engines, collectors and learners for tests, which name what they are about and leave the rest to the settings."""

from tfppo.computation.choice import choose_sampling
from tfppo.computation.computation import Chosen, Computation
from tfppo.computation.devices import resolve_jit_compile
from tfppo.computation.graph import GraphEngine
from tfppo.computation.native.engine import NativeEngine
from tfppo.ppo.learner import Learner
from tfppo.ppo.rollout import RolloutCollector
from tfppo.ppo.sampler import Sampler


def update_engine(ppo, dtype, native=None, on_gpu=False):
    """What the settings say of a dtype: TensorFlow's own operations, C++ where `native` has its operations, or what is
    made for GPUs.
    """
    if native is not None:
        return NativeEngine(native, dtype)
    compiled = on_gpu or resolve_jit_compile(ppo.jit_compile, dtype)
    return GraphEngine(dtype, compiled, recomputes=ppo.gradient_checkpointing, fixed_shapes=on_gpu)


def build_learner(
    policy, ppo, reward, strategy, temperature=1.0, dtype=None, lengths_vary=False, native=None, on_gpu=False
):
    """A learner in the policy's own dtype, if nothing else is said."""
    engine = update_engine(ppo, dtype or policy.dtype_policy.name, native, on_gpu)
    return Learner(policy, ppo, reward, strategy, temperature=temperature, engine=engine, lengths_vary=lengths_vary)


def build_computation(sampling, dtype="float32", native=None):
    """What the settings of the sampling say of rollouts in a dtype; `native`: operations that score, too."""
    sampled = choose_sampling(sampling, dtype, architecture="gpt2", measures=True)
    if native is not None and dtype == "mixed_bfloat16":
        engine = NativeEngine(native, dtype)
    else:
        engine = GraphEngine(dtype, resolve_jit_compile(sampling.jit_compile, dtype))
    chosen = Chosen(engines=(engine,), reason="the test's")
    return Computation(sampling=sampled, scoring=chosen, update=chosen)


def build_collector(policy, ref_model, sampling, reward, *, tokenizer, rewards, strategy, dtype=None, native=None):
    """A collector in the policy's own dtype, if nothing else is said."""
    return RolloutCollector(
        policy,
        ref_model,
        sampling=sampling,
        reward=reward,
        computation=build_computation(sampling, dtype or policy.dtype_policy.name, native),
        tokenizer=tokenizer,
        rewards=rewards,
        strategy=strategy,
    )


def build_sampler(policy, sampling, *, eos_id, pad_id, strategy, measures=False):
    """A sampler in the policy's own dtype."""
    engines = choose_sampling(sampling, policy.dtype_policy.name, architecture="gpt2", measures=measures).engines
    return Sampler(policy, sampling, engines, eos_id=eos_id, pad_id=pad_id, strategy=strategy)


def engines_of(config):
    """What samples from a model in float32, as the settings say."""
    return choose_sampling(config.sampling, "float32", architecture="gpt2").engines

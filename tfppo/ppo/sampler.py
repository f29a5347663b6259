"""Prompts to Samples on all replicas, by the engine that is given, or the faster one of several."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import tensorflow as tf

from tfppo.computation.engine import Engine
from tfppo.computation.modes import mode_key, resolve_mode
from tfppo.config import SamplingConfig
from tfppo.data.prompts import Prompts
from tfppo.models.policy import Policy
from tfppo.ppo.drawing import draw_uniforms
from tfppo.ppo.sampling import sample
from tfppo.ppo.types import Samples
from tfppo.training.replicas import map_rows


class Sampler:
    """Prompts to Samples under one `tf.function`, on all replicas.

    Args:
        engines: one that samples; or two, one compiled by XLA and one not, of which the first call takes the faster one
            for itself and all later ones (the first where it cannot tell). A few calls would not earn the time back.
        value_after_stop: see `sample`.
    """

    def __init__(
        self,
        policy: Policy,
        config: SamplingConfig,
        engines: Sequence[Engine],
        *,
        eos_id: int,
        pad_id: int,
        strategy: tf.distribute.Strategy,
        value_after_stop: bool = False,
    ):
        self.policy, self.config, self.engines = policy, config, tuple(engines)
        self._num_replicas = strategy.num_replicas_in_sync
        # None: before a first call that measures
        self.engine: Engine | None = self.engines[0] if len(self.engines) == 1 else None

        def sample_share(engine, prompt_ids, prompt_mask, uniforms):
            return sample(
                policy,
                prompt_ids,
                prompt_mask,
                uniforms,
                engine=engine,
                stop_id=eos_id if config.stop_at_eos else None,
                pad_id=pad_id,
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
                value_after_stop=value_after_stop,
            )

        def function(engine):
            return tf.function(lambda *rows: map_rows(strategy, partial(sample_share, engine), *rows), autograph=False)

        self.functions = {engine.name: function(engine) for engine in self.engines}  # traced when called

    def __call__(self, prompts: Prompts, seed: np.ndarray) -> Samples:
        """Samples of prompts [B, P], by an int32 [2] seed."""
        uniforms = draw_uniforms(seed, prompts.prompt_ids.shape[0], self.config.response_length)
        rows = prompts.prompt_ids, prompts.prompt_mask, uniforms
        if self.engine is None:
            self.engine = self._faster_engine(rows)
        return self.functions[self.engine.name](*rows)

    def _faster_engine(self, rows):
        policy, config = self.policy, self.config
        key = mode_key(
            architecture=policy.language_model.trunk.architecture,
            **policy.language_model.trunk.sizes,
            separate_critic=policy.separate_critic,
            mlp_value_head=policy.mlp_value_head,
            dtype=self.engines[0].dtype,
            replicas=self._num_replicas,
            batch_size=rows[0].shape[0],
            prompt_length=rows[0].shape[1],
            response_length=config.response_length,
            stop_at_eos=bool(config.stop_at_eos),
            filtered=config.top_k > 0 or config.top_p < 1,
        )

        def run(mode):
            self.functions[self._engine_of_mode(mode).name](*rows).response_ids.numpy()

        return self._engine_of_mode(resolve_mode(key, self.engines[0].compiled, run))

    def _engine_of_mode(self, compiled):
        return next(engine for engine in self.engines if engine.compiled is compiled)

    @property
    def state(self) -> dict[str, float]:
        """What a resumed run needs: whether XLA was measured to be faster, 1 or 0; -1 where nothing was measured."""
        if len(self.engines) == 1 or self.engine is None:
            return {"sampling_compiled": -1.0}
        return {"sampling_compiled": float(self.engine.compiled)}

    @state.setter
    def state(self, state: Mapping[str, float]) -> None:
        # Engines differ in the last bits: measured anew, a resumed run could go on with the other one.
        if len(self.engines) > 1 and state["sampling_compiled"] >= 0:
            self.engine = self._engine_of_mode(bool(state["sampling_compiled"]))

"""From prompts to a Rollout: sample (or take what the data says), score, and look the reference up."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfppo.computation.devices import resolve_jit_compile
from tfppo.computation.modes import mode_key, resolve_mode
from tfppo.computation.native.building import native_ops
from tfppo.computation.native.head import logprobs_and_entropies
from tfppo.computation.native.trunk import hidden_states
from tfppo.config import RewardConfig, SamplingConfig
from tfppo.data.prompts import Prompts
from tfppo.models.precision import computing_by, computing_in
from tfppo.ops.lengths import LENGTH_PARTS, bucket_of
from tfppo.ops.logprobs import token_logprobs
from tfppo.ops.shaping import mask_after_last
from tfppo.ppo.sampling import draw_uniforms, sample
from tfppo.ppo.types import Rollout, Samples
from tfppo.rewards.scoring import Batch, total_scores
from tfppo.rewards.shaping import ScoreShaper
from tfppo.training.replicas import map_rows

_LENGTH_BUCKETS = 4  # lengths that parts are cut to: each one is compiled when it first comes up


class Collected(NamedTuple):
    """A rollout with what a person reads of it."""

    rollout: Rollout
    prompts: list[str]
    responses: list[str]
    raw_scores: np.ndarray  # [B], weighted sum of the reward functions before any shaping
    reward_means: dict[str, float]  # {"reward/NAME": mean score} of each reward function


class Sampler:
    """Prompts to Samples under one `tf.function`, on all replicas.

    `compiled` says whether XLA compiles it; None before a first call that measures.

    Args:
        dtype: Keras dtype policy; None: the policy's own.
        measures: whether the first call takes the faster mode, compiled or not, for itself and all later ones, where
            neither `sampling.jit_compile` nor native operations decide that. A few calls would not earn the time back.
    """

    def __init__(
        self,
        policy,
        config: SamplingConfig,
        *,
        eos_id,
        pad_id,
        strategy,
        value_after_stop=False,
        dtype=None,
        measures=False,
    ):
        self.policy, self.config, self._num_replicas = policy, config, strategy.num_replicas_in_sync
        self.dtype = dtype = dtype or policy.dtype_policy.name
        native = native_ops(config.native, dtype)
        self._native = native is not None
        self._rule = resolve_jit_compile(config.jit_compile, "float32" if native else dtype)
        self._measures = measures and config.jit_compile is None and native is None
        self.compiled = None if self._measures else self._rule

        def sample_share(compiled, prompt_ids, prompt_mask, uniforms):
            with computing_in(policy, dtype):
                return sample(
                    policy,
                    prompt_ids,
                    prompt_mask,
                    uniforms,
                    stop_id=eos_id if config.stop_at_eos else None,
                    pad_id=pad_id,
                    temperature=config.temperature,
                    top_k=config.top_k,
                    top_p=config.top_p,
                    value_after_stop=value_after_stop,
                    compiled=compiled,
                    native=native,
                )

        def function(compiled):
            return tf.function(lambda *rows: map_rows(strategy, partial(sample_share, compiled), *rows))

        self.functions = {compiled: function(compiled) for compiled in (True, False)}  # traced when called

    def __call__(self, prompts: Prompts, seed) -> Samples:
        """Samples of prompts [B, P], by an int32 [2] seed."""
        uniforms = draw_uniforms(seed, prompts.prompt_ids.shape[0], self.config.response_length)
        rows = prompts.prompt_ids, prompts.prompt_mask, uniforms
        if self.compiled is None:
            self.compiled = self._faster_mode(rows)
        return self.functions[self.compiled](*rows)

    def _faster_mode(self, rows):
        policy, config = self.policy, self.config
        key = mode_key(
            **policy.language_model.trunk.sizes,
            separate_critic=policy.separate_critic,
            mlp_value_head=policy.mlp_value_head,
            dtype=self.dtype,
            replicas=self._num_replicas,
            batch_size=rows[0].shape[0],
            prompt_length=rows[0].shape[1],
            response_length=config.response_length,
            stop_at_eos=config.stop_at_eos,
            filtered=config.top_k > 0 or config.top_p < 1,
        )
        return resolve_mode(key, self._rule, lambda compiled: self.functions[compiled](*rows).response_ids.numpy())

    @property
    def computed_by(self) -> str | None:
        """What samples: "C++", "XLA" or "graph", the plain one; None before a first call that measures."""
        if self._native:
            return "C++"
        return None if self.compiled is None else ("XLA" if self.compiled else "graph")

    @property
    def state(self) -> dict[str, float]:
        """What a resumed run needs: the mode that was measured to be faster, 1 or 0; -1 where none was."""
        faster = self.compiled if self._measures else None
        return {"sampling_compiled": -1.0 if faster is None else float(faster)}

    @state.setter
    def state(self, state):
        # Modes differ in the last bits: measured anew, a resumed run could go on in the other one.
        if self._measures and state["sampling_compiled"] >= 0:
            self.compiled = bool(state["sampling_compiled"])


def first_stop_mask(response_ids, response_mask, stop_id, truncate_after):
    """The mask up to the first stop token at position `truncate_after` or later, and whether there is one.

    Args: response_ids, response_mask: NumPy arrays [B, R]. Returns: float32 [B, R], bool [B].
    """
    stops = (response_ids == stop_id) & (response_mask > 0)
    stops[:, :truncate_after] = False
    stops_before = np.cumsum(stops, axis=1) - stops
    return response_mask * (stops_before == 0), stops.any(axis=1)


def scored_part(response_ids, response_mask, reward: RewardConfig, stop_id):
    """The mask of what reward functions see of responses: all of them, or with `truncate_at_eos` up to the first stop.

    Args: response_ids, response_mask: NumPy arrays [B, R].
    Returns: float32 [B, R], and which responses have such a stop, bool [B]; None where nothing is truncated.
    """
    if not reward.truncate_at_eos:
        return response_mask, None
    return first_stop_mask(response_ids, response_mask, stop_id, reward.truncate_after)


def by_length(fn, rows, *, responses, num_parts, buckets):
    """fn over rows with responses of varying lengths, in parts of like length, so that few pads are computed.

    Args:
        fn: (*rows, response_ids, response_mask) -> [b, r], each row by itself.
        rows: tensors [B, ...]; responses: ids and mask, [B, R], the mask 1 up to a length; num_parts: divides B.
        buckets: how many different lengths responses are cut to.
    Returns: [B, R], with 0 where nothing was computed.
    """
    response_mask = responses[1]
    longest = response_mask.shape[1]
    lengths = np.maximum((np.asarray(response_mask) > 0).sum(axis=1), 1)
    order = np.argsort(lengths, kind="stable")
    parts = []
    for mine in np.split(order, num_parts):
        length = min(bucket_of(lengths[mine].max(), longest, buckets), longest)
        cut = [tf.gather(tensor, mine)[:, :length] for tensor in responses]
        parts.append(tf.pad(fn(*(tf.gather(tensor, mine) for tensor in rows), *cut), [[0, 0], [0, longest - length]]))
    return tf.gather(tf.concat(parts, axis=0), np.argsort(order, kind="stable"))


class RolloutCollector:
    """Collects rollouts of a policy.

    Args:
        ref_model: the frozen language model that the KL penalty is measured against.
        rewards: callables Batch -> scores, each with a `name`.
        dtype: Keras dtype policy of all that is computed here; None: the policy's.
        native: of `training_ops`, which compute the trunks in mixed_bfloat16; None: the trunks themselves do.
    """

    def __init__(
        self,
        policy,
        ref_model,
        sampling: SamplingConfig,
        reward: RewardConfig,
        *,
        tokenizer,
        rewards,
        strategy,
        dtype=None,
        native=None,
    ):
        dtype = dtype or policy.dtype_policy.name
        computed_by = None
        if native and dtype == "mixed_bfloat16":
            computed_by = partial(hidden_states, native, with_gradient=False)
        self.ref_model, self.tokenizer, self.rewards, self.reward = ref_model, tokenizer, rewards, reward
        self._lengths_vary, self._num_replicas = sampling.stop_at_eos, strategy.num_replicas_in_sync
        self.shaper = ScoreShaper(reward)
        self.sampler = Sampler(
            policy,
            sampling,
            eos_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
            strategy=strategy,
            value_after_stop=reward.placement == "after_last",
            dtype=dtype,
            measures=True,
        )

        @tf.function(jit_compile=True)  # even where the products are not: of the logits it makes one pass
        def logprobs_of_logits(logits, response_ids):
            return token_logprobs(logits, response_ids, sampling.temperature)

        def logprobs_of(language_model, hidden, response_ids, response_mask):
            if computed_by is None:
                logprobs = logprobs_of_logits(language_model.logits(hidden), response_ids)
            else:
                chosen = (native, language_model, hidden, response_ids, sampling.temperature)
                logprobs, _ = logprobs_and_entropies(*chosen, with_gradient=False)
            return logprobs * response_mask

        def ref_logprobs(prompt_ids, prompt_mask, response_ids, response_mask):
            batch = prompt_ids, prompt_mask, response_ids, response_mask
            with computing_in(ref_model, dtype), computing_by(ref_model, computed_by):
                return logprobs_of(ref_model, ref_model.trunk.response_states(*batch), response_ids, response_mask)

        def teacher_forced(prompt_ids, prompt_mask, response_ids, response_mask):
            with computing_in(policy, dtype), computing_by(policy, computed_by):
                hidden, values = policy.response_states(prompt_ids, prompt_mask, response_ids, response_mask)
                logprobs = logprobs_of(policy.language_model, hidden, response_ids, response_mask)
            states = mask_after_last(response_mask) if reward.placement == "after_last" else response_mask
            return logprobs, values * states

        jit_compile = False if computed_by else resolve_jit_compile(sampling.jit_compile, dtype)

        def compiled(fn):
            compiled_fn = tf.function(fn, jit_compile=jit_compile)
            return tf.function(lambda *rows: map_rows(strategy, compiled_fn, *rows))

        self.ref_logprobs, self._teacher_forced = compiled(ref_logprobs), compiled(teacher_forced)

    @property
    def state(self) -> dict[str, float]:
        """What a resumed run needs to go on: the moments of the scores, and how is sampled."""
        return {**self.shaper.state, **self.sampler.state}

    @state.setter
    def state(self, state):
        self.shaper.state = {name: state[name] for name in self.shaper.state}
        self.sampler.state = state

    def collect(self, prompts: Prompts, seed) -> Collected:
        """One rollout of prompts [B, P], sampled from the policy.

        Raises: UserError where a reward function returns anything but finite numbers in the right count.
        """
        return self._score(prompts, self.sampler(prompts, seed))

    def replay(self, prompts: Prompts, response_ids, response_mask) -> Collected:
        """One rollout of the data's own responses: the data's actions, and how likely the policy finds them.

        Args: response_ids int32 [B, R]; response_mask float32 [B, R]. Raises: UserError as `collect` does.
        """
        response_ids, response_mask = tf.convert_to_tensor(response_ids), tf.convert_to_tensor(response_mask)
        logprobs, values = self._teacher_forced(*prompts, response_ids, response_mask)
        last = tf.reduce_any((response_ids == self.tokenizer.eos_id) & (response_mask > 0), axis=1)
        return self._score(prompts, Samples(response_ids, response_mask, logprobs, values, last))

    def reference_of(self, prompts, response_ids, response_mask):
        """Log-probabilities [B, R] of responses under the reference; where lengths vary, in parts of like length."""
        if not self._lengths_vary:
            return self.ref_logprobs(*prompts, response_ids, response_mask)
        share = response_ids.shape[0] // self._num_replicas
        return by_length(
            self.ref_logprobs,
            prompts,
            responses=(response_ids, response_mask),
            num_parts=math.gcd(share, LENGTH_PARTS),
            buckets=_LENGTH_BUCKETS,
        )

    def score(self, prompts, samples):
        """What the reward functions say of samples: Batch, scores, mean of each function, which responses stopped."""
        ids, mask = samples.response_ids.numpy(), samples.response_mask.numpy()
        mask, found = scored_part(ids, mask, self.reward, self.tokenizer.eos_id)
        prompt_texts = self.tokenizer.decode_batch(prompts.prompt_ids.numpy())
        responses = self.tokenizer.decode_batch(np.where(mask > 0, ids, self.tokenizer.pad_id))
        batch = Batch(prompt_texts, responses, prompts, ids, mask, self.tokenizer)
        scores, means = total_scores(self.rewards, self.reward.weights, batch)
        return batch, scores, means, samples.stopped if found is None else tf.constant(found)

    def _score(self, prompts, samples):
        with ThreadPoolExecutor(max_workers=1) as worker:  # the reference computes while Python scores
            reference = worker.submit(self.reference_of, prompts, samples.response_ids, samples.response_mask)
            batch, scores, means, stopped = self.score(prompts, samples)
            ref_logprobs = reference.result()
        shaped = self.shaper(scores, stopped.numpy(), batch.lengths)
        rollout = Rollout(*prompts, *samples[:4], ref_logprobs, tf.constant(shaped), stopped)
        return Collected(rollout, batch.texts, batch.responses, scores.reshape(len(scores), -1).sum(axis=1), means)

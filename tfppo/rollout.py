"""From prompts to a Rollout: sample, score, and look the reference up."""

from typing import NamedTuple

import tensorflow as tf

from tfppo.config import SamplingConfig
from tfppo.distribute import map_rows
from tfppo.ops.logprobs import token_logprobs
from tfppo.rewards.loading import score
from tfppo.sampling import draw_uniforms, sample
from tfppo.types import Prompts, Rollout


class Texts(NamedTuple):
    """What a person reads of a rollout."""

    prompts: list[str]
    responses: list[str]


class Sampler:
    """Prompts to Samples under one compiled function, on all replicas."""

    def __init__(self, policy, config: SamplingConfig, *, eos_id, pad_id, strategy):
        self.config = config

        def sample_share(prompt_ids, prompt_mask, uniforms):
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
            )

        compiled = tf.function(sample_share, jit_compile=config.jit_compile)
        self._sample = tf.function(lambda *rows: map_rows(strategy, compiled, *rows))

    def __call__(self, prompts: Prompts, seed):
        """Samples of prompts [B, P], by an int32 [2] seed."""
        uniforms = draw_uniforms(seed, prompts.prompt_ids.shape[0], self.config.response_length)
        return self._sample(prompts.prompt_ids, prompts.prompt_mask, uniforms)


class RolloutCollector:
    """Collects rollouts of a policy.

    Args:
        ref_model: the frozen language model that the KL penalty is measured against.
        reward_fn: (prompts, responses) -> scores.
    """

    def __init__(self, policy, ref_model, config: SamplingConfig, *, tokenizer, reward_fn, strategy):
        self.tokenizer, self.reward_fn = tokenizer, reward_fn
        self.sampler = Sampler(policy, config, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, strategy=strategy)

        def ref_logprobs(prompt_ids, prompt_mask, response_ids, response_mask):
            logits = ref_model.response_logits(prompt_ids, prompt_mask, response_ids, response_mask)
            return token_logprobs(logits, response_ids, config.temperature) * response_mask

        compiled = tf.function(ref_logprobs, jit_compile=config.jit_compile)
        self._ref_logprobs = tf.function(lambda *rows: map_rows(strategy, compiled, *rows))

    def collect(self, prompts: Prompts, seed) -> tuple[Rollout, Texts]:
        """One rollout of prompts [B, P], and its texts.

        Raises: UserError where the reward function returns anything but one finite number a response.
        """
        samples = self.sampler(prompts, seed)
        texts = Texts(
            self.tokenizer.decode_batch(prompts.prompt_ids.numpy()),
            self.tokenizer.decode_batch(samples.response_ids.numpy()),
        )
        scores = score(self.reward_fn, texts.prompts, texts.responses)
        ref_logprobs = self._ref_logprobs(*prompts, samples.response_ids, samples.response_mask)
        rollout = Rollout(*prompts, *samples[:4], ref_logprobs, tf.constant(scores), samples.stopped)
        return rollout, texts

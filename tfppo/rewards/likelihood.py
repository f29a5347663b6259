"""The likelihood reward: the log-probability of the response under a frozen language model."""

import numpy as np
import tensorflow as tf

from tfppo.models.language_model import LanguageModel
from tfppo.ops.logprobs import token_logprobs
from tfppo.rewards.batch import Batch


class LikelihoodReward:
    """Scores responses by their summed log-probability, in nats, under a frozen language model."""

    name = "likelihood"

    def __init__(self, scorer: LanguageModel, jit_compile: bool):
        self.model = scorer

        def log_likelihood(prompt_ids, prompt_mask, response_ids, response_mask):
            hidden = scorer.trunk.response_states(prompt_ids, prompt_mask, response_ids, response_mask)
            logprobs = scorer.of_logits(token_logprobs, hidden, response_ids)
            return tf.reduce_sum(logprobs * response_mask, axis=1)

        self._log_likelihood = tf.function(log_likelihood, jit_compile=jit_compile, autograph=False)

    def __call__(self, batch: Batch) -> np.ndarray:
        """Scores [B]."""
        return self._log_likelihood(*batch.prompts, batch.response_ids, batch.response_mask).numpy()

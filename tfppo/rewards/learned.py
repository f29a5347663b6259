"""The learned reward: the score of a reward model, computed from the tokens."""

import numpy as np
import tensorflow as tf

from tfppo.models.reward_model import RewardModel
from tfppo.rewards.batch import Batch


class LearnedReward:
    """Scores responses with a reward model, which must have the tokenizer of the policy."""

    name = "reward_model"

    def __init__(self, model: RewardModel, jit_compile: bool):
        self.model = model
        self._scores = tf.function(model.response_scores, jit_compile=jit_compile, autograph=False)

    def __call__(self, batch: Batch) -> np.ndarray:
        """Scores [B], read at the last token of each response."""
        return self._scores(*batch.prompts, batch.response_ids, batch.response_mask).numpy()

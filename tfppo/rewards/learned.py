"""The learned reward: the score of a reward model, of the tokens themselves."""

import numpy as np
import tensorflow as tf

from tfppo.models.reward_model import RewardModel
from tfppo.rewards.scoring import Batch


class LearnedReward:
    """Scores a response by a reward model that has its tokenizer; nothing is tokenised anew."""

    name = "reward_model"

    def __init__(self, model: RewardModel, jit_compile: bool):
        self.model = model
        self._scores = tf.function(model.response_scores, jit_compile=jit_compile)

    def __call__(self, batch: Batch) -> np.ndarray:
        """Scores [B], each read at the last token that reward functions see."""
        return self._scores(*batch.prompts, batch.response_ids, batch.response_mask).numpy()

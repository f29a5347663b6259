"""Scores of comparisons under a reward model, and the held-out loss and accuracy."""

import numpy as np
import tensorflow as tf

from tfppo.data.preferences import Comparisons
from tfppo.models.reward_model import RewardModel
from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.losses import preference_loss


def comparison_scores(model: RewardModel, batch: Comparisons, arithmetic: Arithmetic | None = None) -> tf.Tensor:
    """The score of every response of B comparisons under a reward model: float32 [B, K].

    Args: arithmetic: what computes them; None: the model's own.
    """
    size = batch.response_ids.shape[1]
    ids, mask = (tf.repeat(tensor, size, axis=0) for tensor in (batch.prompt_ids, batch.prompt_mask))
    responses = (tf.reshape(tensor, [-1, tensor.shape[-1]]) for tensor in (batch.response_ids, batch.response_mask))
    response_ids, response_mask = responses
    return tf.reshape(model.response_scores(ids, mask, response_ids, response_mask, arithmetic), [-1, size])


def ranks_chosen_first(scores: tf.Tensor) -> tf.Tensor:
    """Whether the chosen response, the first one, has the highest score: [B, K] -> bool [B]."""
    return tf.reduce_all(scores[:, :1] > scores[:, 1:], axis=1)


class ComparisonScorer:
    """Scores any number of comparisons under a reward model, `batch_size` at a time."""

    def __init__(self, model: RewardModel, batch_size: int):
        self._batch_size = batch_size
        self._scores = tf.function(lambda batch: comparison_scores(model, batch), autograph=False)

    def __call__(self, comparisons: Comparisons) -> np.ndarray:
        """Scores [N, K]."""
        count, size, parts = len(comparisons.prompt_ids), self._batch_size, []
        for start in range(0, count, size):
            rows = (
                np.arange(start, start + size) % count
            )  # the last batch is filled up, as another size would be traced again
            parts.append(self._scores(Comparisons(*(array[rows] for array in comparisons))).numpy())
        return np.concatenate(parts)[:count]


def held_out_figures(scores: np.ndarray) -> dict[str, float]:
    """Mean loss of scores [N, K], and accuracy: how often the chosen response has the highest score."""
    return {
        "loss": float(tf.reduce_mean(preference_loss(scores))),
        "accuracy": float(np.mean(ranks_chosen_first(scores))),
    }

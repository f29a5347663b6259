"""Shapes the scores of reward functions for PPO: normalised, scaled, clipped, penalised."""

import numpy as np

from tfppo.config import RewardConfig


def merge_moments(count: float, mean: float, variance: float, scores: np.ndarray) -> tuple[float, float, float]:
    """Running count, mean and biased variance after more scores [N] (Chan et al. 1979)."""
    added, added_mean, added_variance = len(scores), float(scores.mean()), float(scores.var())
    total = count + added
    gap = added_mean - mean
    squares = variance * count + added_variance * added + gap * gap * count * added / total
    return total, mean + gap * added / total, squares / total


def penalise_missing_stop(
    scores: np.ndarray, stopped: np.ndarray, lengths: np.ndarray, penalty: float, mode: str
) -> np.ndarray:
    """Penalises responses without the stop token.

    Their score is replaced by `penalty` (mode "replace"; Ziegler et al. 2019: -1), or `penalty` is subtracted from it
    (TRL). Dense scores [B, R] take the penalty at the last token.

    Args: scores [B] or [B, R]; stopped bool [B]; lengths int [B]. Returns scores of the same shape.
    """
    scores, rows = scores.copy(), np.flatnonzero(~stopped)
    last = rows if scores.ndim == 1 else (rows, np.maximum(lengths[rows] - 1, 0))
    if mode == "replace":
        scores[rows] = 0.0
        scores[last] = penalty
    else:
        scores[last] -= penalty
    return scores


class ScoreShaper:
    """Applies a RewardConfig to scores. `state` holds the running count, mean and variance of all scores; each call
    makes it anew, so that an earlier one can be put back.
    """

    def __init__(self, config: RewardConfig):
        self._config = config
        self.state = {"score_count": 0.0, "score_mean": 0.0, "score_variance": 0.0}

    def __call__(self, scores: np.ndarray, stopped: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Scores for PPO: normalised by all scores so far, these included, then scaled, clipped and penalised.

        Args: scores float32 [B] or [B, R]; stopped bool [B]; lengths int [B]. Returns float32 of the same shape.
        """
        config = self._config
        if config.normalize:
            whole = scores.reshape(len(scores), -1).sum(axis=1).astype(np.float64)
            count, mean, variance = self.state.values()
            moments = merge_moments(count, mean, variance, whole)
            self.state = dict(zip(self.state, moments, strict=True))
            mean, deviation = moments[1], max(np.sqrt(moments[2]), 1e-8)
            # Dense scores sum to the score of a response, so only their scale can be normalised.
            scores = (scores - mean) / deviation if scores.ndim == 1 else scores / deviation
        scores = scores * config.scale
        if config.clip is not None:
            scores = np.clip(scores, -config.clip, config.clip)
        if config.missing_stop_penalty is not None:
            scores = penalise_missing_stop(
                scores, stopped, lengths, config.missing_stop_penalty, config.missing_stop_mode
            )
        return scores.astype(np.float32)

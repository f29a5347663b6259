"""Which part of a response reward functions see."""

import numpy as np

from tfppo.config import RewardConfig


def first_stop_mask(
    response_ids: np.ndarray, response_mask: np.ndarray, stop_id: int, truncate_after: int
) -> tuple[np.ndarray, np.ndarray]:
    """The mask up to the first stop token at position `truncate_after` or later, and whether there is one.

    Args: response_ids, response_mask: NumPy arrays [B, R]. Returns: float32 [B, R], bool [B].
    """
    stops = (response_ids == stop_id) & (response_mask > 0)
    stops[:, :truncate_after] = False
    stops_before = np.cumsum(stops, axis=1) - stops
    return response_mask * (stops_before == 0), stops.any(axis=1)


def scored_part(
    response_ids: np.ndarray, response_mask: np.ndarray, reward: RewardConfig, stop_id: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The mask of what reward functions see of responses: all of them, or with `truncate_at_eos` up to the first stop.

    Args: response_ids, response_mask: NumPy arrays [B, R].
    Returns: float32 [B, R], and which responses have such a stop, bool [B]; None where nothing is truncated.
    """
    if not reward.truncate_at_eos:
        return response_mask, None
    return first_stop_mask(response_ids, response_mask, stop_id, reward.truncate_after)

"""Which part of a response reward functions see, and what they say of it."""

from collections.abc import Callable, Sequence

import numpy as np

from tfppo.config import RewardConfig
from tfppo.data.prompts import Columns, Prompts
from tfppo.data.tokenizer import Tokenizer
from tfppo.rewards.batch import Batch
from tfppo.rewards.scoring import Reward, total_scores
from tfppo.training.workers import Answer

_SCORES = "scores"  # beside the means, whose names start with reward/


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


def score_responses(
    prompts: Prompts,
    response_ids: np.ndarray,
    response_mask: np.ndarray,
    columns: Columns,
    *,
    tokenizer: Tokenizer,
    rewards: Sequence[Reward],
    reward: RewardConfig,
    ask: Callable[[Callable[[], Answer]], Answer] = lambda answer: answer(),
) -> tuple[Batch, np.ndarray, dict[str, float], np.ndarray | None]:
    """What the reward functions give for responses.

    Args: response_ids, response_mask: NumPy arrays [B, R]; columns: of the data, one value a response;
        ask: calls the reward functions, or gets what another worker has for them; see `Alone.chief_answers`.
    Returns: what they saw; scores float32 [B] or [B, R]; the mean of each function; the stops of `scored_part`.
    Raises: UserError as the functions do.
    """
    mask, stops = scored_part(response_ids, response_mask, reward, tokenizer.eos_id)
    texts = tokenizer.decode_batch(prompts.prompt_ids.numpy())
    responses = tokenizer.decode_batch(np.where(mask > 0, response_ids, tokenizer.pad_id))
    batch = Batch(texts, responses, prompts, response_ids, mask, tokenizer, columns)

    def answer():
        scores, means = total_scores(rewards, reward.weights, batch)
        return {_SCORES: scores, **means}

    found = dict(ask(answer))
    scores = np.asarray(found.pop(_SCORES))
    return batch, scores, {name: float(mean) for name, mean in found.items()}, stops

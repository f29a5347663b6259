"""Normalises a reward model after its training, by a gain and a bias that are folded into its head.

A comparison says nothing about where the scores lie; PPO's KL coefficient is chosen for scores of one size.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfppo.computation.engine import Engine
from tfppo.config import Config
from tfppo.data.preferences import Comparisons
from tfppo.data.prompts import Prompts
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.reward_model import RewardModel
from tfppo.ops.seeds import seed_for, stream_indices
from tfppo.ppo.sampler import Sampler
from tfppo.ppo.scored_part import scored_part
from tfppo.reward_model.comparison import ComparisonScorer


def gain_and_bias(scores: np.ndarray, keep_gain: bool) -> tuple[float, float]:
    """What gives scores [N] mean 0 and deviation 1: gain = 1 / deviation, bias = -gain * mean (Ziegler et al. 2019).

    With `keep_gain` mean 0 alone: gain = 1 (Huang et al. 2024).
    """
    scores = np.asarray(scores, np.float64)
    gain = 1.0 if keep_gain else 1.0 / scores.std()
    return gain, -gain * scores.mean()


def normalize(
    reward_model: RewardModel,
    language_model: LanguageModel,
    train: Comparisons,
    tokenizer: Tokenizer,
    config: Config,
    engines: Sequence[Engine],
) -> None:
    """Normalises a reward model as `reward_model.normalize` says.

    Args: train: the comparisons that it was trained on; their prompts are those of the samples; engines: that
        sample from the language model; see `Sampler`.
    Raises: UserError where all samples have one score, or scores are not finite.
    """
    settings = config.reward_model
    if settings.normalize == "none":
        return
    if settings.normalize == "demonstrations":
        texts = train._replace(response_ids=train.response_ids[:, :1], response_mask=train.response_mask[:, :1])
    else:
        texts = sample_responses(language_model, train, tokenizer, config, engines)
    scores = ComparisonScorer(reward_model, settings.batch_size)(texts)
    if not np.isfinite(scores).all():
        raise UserError(
            f"reward_model.normalize is {settings.normalize!r}, but the reward model gives scores that are not finite; "
            f"lower reward_model.learning_rate {settings.learning_rate:g}"
        )
    if settings.normalize == "samples" and not scores.std() > 0:
        raise UserError(
            f"reward_model.normalize is 'samples', but all {len(scores)} samples of the language model have the score "
            f"{scores[0, 0]:g}; raise sampling.temperature {config.sampling.temperature:g} or use 'demonstrations'"
        )
    reward_model.rescale(*gain_and_bias(scores, keep_gain=settings.normalize == "demonstrations"))


def sample_responses(
    language_model: LanguageModel,
    train: Comparisons,
    tokenizer: Tokenizer,
    config: Config,
    engines: Sequence[Engine],
) -> Comparisons:
    """Responses of the language model, `normalize_samples` of them, as PPO draws them and reward functions see them.

    Each stands alone (K = 1), after a prompt of the comparisons.
    """
    count, size = config.reward_model.normalize_samples, config.reward_model.batch_size
    sampler = Sampler(
        Policy(language_model),
        config.sampling,
        engines,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        strategy=tf.distribute.get_strategy(),
    )
    parts = []
    for number, start in enumerate(range(0, count, size)):
        rows = stream_indices(config.seed, "normalize prompts", start, size, len(train.prompt_ids))
        prompts = Prompts(tf.constant(train.prompt_ids[rows]), tf.constant(train.prompt_mask[rows]))
        samples = sampler(prompts, seed_for(config.seed, "normalize", number))
        ids = samples.response_ids.numpy()
        mask, _ = scored_part(ids, samples.response_mask.numpy(), config.reward, tokenizer.eos_id)
        parts.append((train.prompt_ids[rows], train.prompt_mask[rows], ids[:, None], mask[:, None]))
    return Comparisons(*(np.concatenate(arrays)[:count] for arrays in zip(*parts, strict=True)))

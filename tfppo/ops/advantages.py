"""Returns and advantages: GAE, Monte-Carlo, and the estimators that need no critic."""

import tensorflow as tf

from tfppo.ops.masking import masked_sum, zero_padding
from tfppo.ops.shapes import size_of

_ROUNDING = 4 * 2.0**-23  # four units in the last place of a float32 number, as a share of it


def discounted_returns(rewards: tf.Tensor, response_mask: tf.Tensor, gamma: float) -> tf.Tensor:
    """G_t = r_t + gamma * G_{t+1}, with G = 0 after the last real token. [B, R] -> [B, R].

    Gaps in the mask (tokens that the policy did not choose) are skipped.
    """

    def step(following, now):
        reward, is_real = now
        return tf.where(is_real, reward + gamma * following, following)

    returns = _scan_from_the_end(step, (rewards, response_mask > 0), tf.zeros_like(rewards[:, 0]))
    return zero_padding(returns, response_mask)


def gae(
    rewards: tf.Tensor, values: tf.Tensor, response_mask: tf.Tensor, *, gamma: float, gae_lambda: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16). The value after the last token is 0.

    Gaps in the mask (tokens that the policy did not choose) are skipped.

    Args: rewards, values, response_mask [B, R].
    Returns: advantages [B, R] and returns = advantages + values [B, R], both 0 at padding.
    """

    def step(following, now):
        next_advantage, next_value = following
        reward, value, is_real = now
        advantage = reward + gamma * next_value - value + gamma * gae_lambda * next_advantage
        return tf.where(is_real, advantage, next_advantage), tf.where(is_real, value, next_value)

    nothing = tf.zeros_like(rewards[:, 0])
    advantages, _ = _scan_from_the_end(step, (rewards, values, response_mask > 0), (nothing, nothing))
    return zero_padding(advantages, response_mask), zero_padding(advantages + values, response_mask)


def _scan_from_the_end(step, rows, initial):
    """Scans step(following, now) over the columns of [B, R] tensors, from the last to the first: [B, R] each.

    Not by `tf.scan`, whose loop XLA cannot count: a GPU then asks its host before each column whether to go on.
    """
    columns = tf.nest.map_structure(tf.transpose, rows)
    count = size_of(tf.nest.flatten(columns)[0], 0)

    def one(number, following, results):
        place = count - 1 - number
        following = step(following, tf.nest.map_structure(lambda column: column[place], columns))
        results = tf.nest.map_structure(lambda result, value: result.write(place, value), results, following)
        return number + 1, following, results

    results = tf.nest.map_structure(
        lambda value: tf.TensorArray(value.dtype, count, element_shape=value.shape), initial
    )
    _, _, results = tf.while_loop(lambda number, *_: number < count, one, (tf.constant(0), initial, results))
    return tf.nest.map_structure(lambda result: tf.transpose(result.stack()), results)


def without_spread(totals: tf.Tensor, group_size: int) -> tf.Tensor:
    """Which groups have equal totals, up to the rounding of float32: within four units in the last place.

    Args: totals [B], the responses to one prompt next to each other. Returns: bool [B / group_size].
    """
    groups = tf.reshape(totals, [-1, group_size])
    spread = tf.reduce_max(groups, axis=1) - tf.reduce_min(groups, axis=1)
    return tf.math.is_finite(spread) & (spread <= _ROUNDING * tf.reduce_max(tf.abs(groups), axis=1))


def _groups_from_zero(totals, group_size):
    """Totals as what they are above the least of their group: [B / group_size, group_size].

    No estimator by group minds a constant. So equal totals are zeros, and stay so in every sum, whatever their number
    and value; 8 times 7.7 over 8 is not 7.7 in float32.
    """
    groups = tf.reshape(totals, [-1, group_size])
    above = groups - tf.reduce_min(groups, axis=1, keepdims=True)
    return tf.where(without_spread(totals, group_size)[:, None], 0.0, above)


def rloo(totals: tf.Tensor, group_size: int) -> tf.Tensor:
    """RLOO: the total of a response minus the mean total of the other responses to its prompt (Ahmadian et al. 2024).

    A group of equal totals gets exactly 0.
    Args: totals [B], the responses to one prompt next to each other, `group_size` >= 2 of them. Returns [B].
    """
    groups = _groups_from_zero(totals, group_size)
    others = (tf.reduce_sum(groups, axis=1, keepdims=True) - groups) / (group_size - 1)
    return tf.reshape(groups - others, [-1])


def grpo(totals: tf.Tensor, group_size: int) -> tf.Tensor:
    """GRPO: the total of a response, standardised over all responses to its prompt (Shao et al. 2024).

    The standard deviation divides by n - 1, and 1e-6 is added to it. A group of equal totals gets exactly 0.
    Args: totals [B], the responses to one prompt next to each other, `group_size` >= 2 of them. Returns [B].
    """
    groups = _groups_from_zero(totals, group_size)
    centred = groups - tf.reduce_mean(groups, axis=1, keepdims=True)
    deviation = tf.sqrt(tf.reduce_sum(tf.square(centred), axis=1, keepdims=True) / (group_size - 1))
    return tf.reshape(centred / (deviation + 1e-6), [-1])


def estimate_advantages(
    rewards: tf.Tensor,
    values: tf.Tensor,
    mask: tf.Tensor,
    *,
    estimator: str,
    gamma: float,
    gae_lambda: float,
    critic_gae_lambda: float | None = None,
    group_size: int = 1,
    critic_mask: tf.Tensor | None = None,
    penalty: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Advantages and targets of the critic by one of ESTIMATORS, both [B, R].

    Args:
        rewards, values, mask: [B, R].
        critic_gae_lambda: lambda for the targets of the critic (Yue et al. 2025); None: gae_lambda.
        critic_mask: [B, R], the states that have rewards and values; None: `mask`.
        penalty: [B, R], what is still to be taken from the rewards for the KL. It is a part of them for all estimators
            but one: GRPO standardises without it, and takes the sum of what is still to come from each token's
            advantage. None: nothing.
    """
    scored = rewards
    if penalty is not None:
        rewards = rewards - penalty
    states = mask if critic_mask is None else critic_mask
    if estimator == "gae":
        advantages, returns = gae(rewards, values, states, gamma=gamma, gae_lambda=gae_lambda)
        if critic_gae_lambda is not None:
            _, returns = gae(rewards, values, states, gamma=gamma, gae_lambda=critic_gae_lambda)
        return zero_padding(advantages, mask), returns
    returns = discounted_returns(rewards, states, gamma)
    if estimator == "monte_carlo":
        return zero_padding(returns - values, mask), returns
    if estimator == "reinforce_pp":
        return zero_padding(returns, mask), returns
    if estimator == "rloo":
        return rloo(masked_sum(rewards, states, axis=1), group_size)[:, None] * mask, returns
    advantages = grpo(masked_sum(scored, states, axis=1), group_size)[:, None]
    if penalty is not None:
        advantages -= discounted_returns(penalty, states, gamma)
    return advantages * mask, returns

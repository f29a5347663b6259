"""Per-token estimates of the KL divergence, and the adaptive KL coefficient."""

import tensorflow as tf

from tfppo.config.choices import KL_ESTIMATORS

# exp(20) is finite, and far outside any clip range: the bound only stops overflow.
MAX_LOG_RATIO = 20.0


def kl_estimate(log_ratio: tf.Tensor, estimator: str) -> tf.Tensor:
    """KL(policy || reference) at a token sampled from the policy, from d = log policy - log reference.

    k1: d, unbiased. k2: d^2 / 2, whose gradient is the KL's. k3: exp(-d) - 1 + d, unbiased and never negative
    (Schulman 2020, "Approximating KL divergence"). abs: |d|, never negative.

    Args: log_ratio [...]. Returns [...].
    """
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * tf.square(log_ratio)
    if estimator == "k3":
        bounded = tf.clip_by_value(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        return tf.math.expm1(-bounded) + bounded
    if estimator == "abs":
        return tf.abs(log_ratio)
    raise ValueError(f"estimator is {estimator!r}; choose one of {KL_ESTIMATORS}")


def kl_exact(logits: tf.Tensor, ref_logits: tf.Tensor, temperature: float = 1.0) -> tf.Tensor:
    """KL(policy || reference) of two next-token distributions, summed over the vocabulary, in nats.

    Args: logits, ref_logits [..., V]. Returns float32 [...].
    """
    logprobs = tf.nn.log_softmax(tf.cast(logits, tf.float32) / temperature)
    ref_logprobs = tf.nn.log_softmax(tf.cast(ref_logits, tf.float32) / temperature)
    return tf.reduce_sum(tf.exp(logprobs) * (logprobs - ref_logprobs), axis=-1)


def adaptive_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: int, num_episodes: int) -> float:
    """The next KL coefficient: raised while the measured KL is above target, lowered while below.

    Ziegler et al. 2019, section 2.2: the relative error is clipped to [-0.2, 0.2], the gain is num_episodes / horizon.

    Args: kl: the KL summed over each response, mean over the batch, in nats; target: in the same unit; horizon: in
        episodes.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * num_episodes / horizon)

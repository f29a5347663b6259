"""The PPO update: epochs of shuffled minibatches over one rollout, in one compiled call."""

import tensorflow as tf

from tfppo.config import PpoConfig
from tfppo.distribute import check_divides, share_of_replica
from tfppo.ops.advantages import gae, token_rewards
from tfppo.ops.logprobs import entropy, token_logprobs
from tfppo.ops.losses import clipped_surrogate_loss, clipped_value_loss, importance_ratio
from tfppo.ops.masking import masked_mean, masked_moments, masked_sum, whiten
from tfppo.optimization import Adam, gradients_of, optimize
from tfppo.types import Rollout, Targets

STEP_STATISTICS = (
    "loss/policy",
    "loss/value",
    "loss/total",
    "policy/approx_kl",
    "policy/clip_fraction",
    "policy/entropy",
    "policy/ratio",
    "value/clip_fraction",
)


def prepare_targets(rollout: Rollout, config: PpoConfig, kl_coef):
    """Rewards, returns and advantages of a whole rollout, and what there is to say about them.

    Returns: Targets, and a dict of scalars.
    """
    mask = rollout.response_mask
    kl = rollout.logprobs - rollout.ref_logprobs
    rewards = token_rewards(rollout.scores, kl, mask, kl_coef)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, returns = gae(rewards, rollout.values, mask, gamma=config.gamma, gae_lambda=config.gae_lambda)
    whitened = whiten(advantages, mask, shift_mean=True) if config.whiten_advantages else advantages
    sequence_kl = masked_sum(kl, mask, axis=1)
    _, returns_variance = masked_moments(returns, mask)
    squared_error = masked_mean(tf.square(rollout.values - returns), mask)
    statistics = {
        "objective/kl": tf.reduce_mean(sequence_kl),
        "objective/kl_coef": kl_coef,
        "objective/entropy": tf.reduce_mean(masked_sum(-rollout.logprobs, mask, axis=1)),
        "objective/score": tf.reduce_mean(rollout.scores),
        "objective/rlhf_reward": tf.reduce_mean(rollout.scores - kl_coef * sequence_kl),
        "value/explained_variance": 1.0 - squared_error / (returns_variance + 1e-8),
        "value/mean": masked_mean(rollout.values, mask),
        "response/length": tf.reduce_mean(tf.reduce_sum(mask, axis=1)),
        "response/stopped": tf.reduce_mean(tf.cast(rollout.stopped, tf.float32)),
    }
    targets = Targets(
        rollout.prompt_ids,
        rollout.prompt_mask,
        rollout.response_ids,
        mask,
        old_logprobs=rollout.logprobs,
        old_values=rollout.values,
        advantages=whitened,
        returns=returns,
    )
    return targets, statistics


def ppo_loss(policy, batch: Targets, num_tokens, config: PpoConfig, temperature):
    """The loss of some rows of a minibatch, and STEP_STATISTICS, as shares of the minibatch's mean over tokens.

    Sums over rows, divided by the number of real tokens of the whole minibatch: however a minibatch is cut, over
    replicas or accumulation steps, the shares add up to the same mean.
    Returns: (loss, ([8] statistics, largest |ratio - 1| of these rows)).
    """
    logits, values = policy.response_outputs(*batch[:4])
    mask = batch.response_mask

    def share(per_token):
        return masked_sum(per_token, mask) / num_tokens

    logprobs = token_logprobs(logits, batch.response_ids, temperature)
    ratio = importance_ratio(logprobs, batch.old_logprobs)
    policy_loss = share(clipped_surrogate_loss(ratio, batch.advantages, clip_range=config.clip_range))
    value_loss = share(
        clipped_value_loss(values, batch.old_values, batch.returns, value_clip_range=config.value_clip_range)
    )
    loss = policy_loss + config.value_coef * value_loss
    value_clipped = tf.zeros_like(values)
    if config.value_clip_range is not None:
        value_clipped = tf.cast(tf.abs(values - batch.old_values) > config.value_clip_range, tf.float32)
    statistics = [
        policy_loss,
        value_loss,
        loss,
        share(0.5 * tf.square(logprobs - batch.old_logprobs)),
        share(tf.cast(tf.abs(ratio - 1.0) > config.clip_range, tf.float32)),
        share(entropy(tf.stop_gradient(logits), temperature)),
        share(ratio),
        share(value_clipped),
    ]
    ratio_error = tf.reduce_max(tf.where(mask > 0, tf.abs(ratio - 1.0), 0.0))
    return loss, (tf.stack(statistics), ratio_error)


class Learner:
    """Owns the optimizer; turns one rollout into one improved policy.

    Args:
        policy: built in the strategy's scope.
        temperature: of the sampling, which divides the logits here too.
    """

    def __init__(self, policy, config: PpoConfig, strategy, temperature=1.0):
        minibatch_size = config.rollout_batch_size // config.num_minibatches
        check_divides(strategy, "the minibatch size (ppo.rollout_batch_size / ppo.num_minibatches)", minibatch_size)
        check_divides(
            strategy,
            "ppo.rollout_batch_size / ppo.num_minibatches / ppo.accumulation_steps",
            minibatch_size // config.accumulation_steps,
        )
        self.policy, self.config, self.strategy, self.temperature = policy, config, strategy, temperature
        with strategy.scope():
            self.optimizer = Adam(config.learning_rate, epsilon=config.adam_epsilon)
            self.optimizer.build(policy.trainable_variables)
        self._micro_gradients = tf.function(self._micro_gradients_eagerly, jit_compile=config.jit_compile)
        self.update = tf.function(self._update)

    def _update(self, rollout, shuffle_seed, kl_coef):
        """Improves the policy by `ppo_epochs` passes over a rollout.

        Args: rollout: Rollout of [B, ...]; shuffle_seed int32 [2]; kl_coef scalar.
        Returns: dict of scalars.
        """
        config = self.config
        targets, statistics = prepare_targets(rollout, config, kl_coef)
        minibatches = self._minibatches(shuffle_seed)
        num_steps = config.ppo_epochs * config.num_minibatches
        history = tf.TensorArray(tf.float32, num_steps, element_shape=[len(STEP_STATISTICS) + 2])
        first_ratio_error = tf.constant(0.0)
        for step in tf.range(num_steps):
            rows = minibatches[step]
            sums, norm, taken = optimize(
                self.strategy,
                self.optimizer,
                self._replica_gradients,
                (targets, rows),
                max_grad_norm=config.max_grad_norm,
            )
            shares, ratio_errors = sums
            first_ratio_error = tf.where(step == 0, tf.reduce_max(ratio_errors), first_ratio_error)
            history = history.write(step, tf.concat([shares, [norm, tf.cast(taken, tf.float32)]], axis=0))
        means = tf.unstack(tf.reduce_mean(history.stack(), axis=0))
        names = (*STEP_STATISTICS, "policy/gradient_norm", "policy/steps_taken")
        return {
            **statistics,
            **dict(zip(names, means, strict=True)),
            "policy/first_ratio_error": first_ratio_error,
        }

    def _minibatches(self, seed):
        """Row numbers of every minibatch of every epoch, a new order each epoch: int32 [epochs * minibatches, M]."""
        config = self.config
        rows = tf.range(config.rollout_batch_size)
        orders = [
            tf.random.experimental.stateless_shuffle(rows, seed + tf.constant([0, epoch]))
            for epoch in range(config.ppo_epochs)
        ]
        return tf.reshape(tf.stack(orders), [config.ppo_epochs * config.num_minibatches, -1])

    def _replica_gradients(self, targets, rows):
        """This replica's share of a minibatch's gradients and statistics, in `accumulation_steps` parts."""
        config = self.config
        num_tokens = tf.maximum(tf.reduce_sum(tf.gather(targets.response_mask, rows)), 1.0)
        context = tf.distribute.get_replica_context()
        mine = tf.reshape(share_of_replica(rows), [config.accumulation_steps, -1])
        gradients, (shares, ratio_error) = self._micro_gradients(_take(targets, mine[0]), num_tokens)
        for part in range(1, config.accumulation_steps):
            more, (more_shares, more_error) = self._micro_gradients(_take(targets, mine[part]), num_tokens)
            gradients = [total + gradient for total, gradient in zip(gradients, more, strict=True)]
            shares, ratio_error = shares + more_shares, tf.maximum(ratio_error, more_error)
        # The largest error has to survive a sum over replicas: each one fills its own slot.
        slot = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
        return gradients, (shares, ratio_error * slot)

    def _micro_gradients_eagerly(self, batch, num_tokens):
        variables = [variable.value for variable in self.policy.trainable_variables]
        return gradients_of(lambda: ppo_loss(self.policy, batch, num_tokens, self.config, self.temperature), variables)


def _take(targets, rows):
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), targets)

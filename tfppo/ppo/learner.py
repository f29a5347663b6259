"""The PPO update: epochs of shuffled minibatches over one rollout, in one compiled call."""

import math
from contextlib import nullcontext
from functools import partial

import tensorflow as tf

from tfppo.computation.devices import resolve_jit_compile
from tfppo.computation.native.head import logprobs_and_entropies
from tfppo.computation.native.trunk import hidden_states
from tfppo.config import PpoConfig, RewardConfig
from tfppo.models.precision import casting_once, compiling_activations, computing_by, computing_in, recomputing_blocks
from tfppo.ops.kl import kl_estimate
from tfppo.ops.lengths import LENGTH_PARTS, at_places, bucket_of
from tfppo.ops.logprobs import entropy, token_logprobs
from tfppo.ops.losses import (
    clipped_surrogate_loss,
    clipped_value_loss,
    importance_ratio,
    is_clipped,
    is_value_clipped,
    token_weights,
)
from tfppo.ops.masking import masked_sum
from tfppo.ppo.targets import prepare_targets
from tfppo.ppo.types import Targets
from tfppo.training.optimization import dense_gradients, make_optimizer, optimize
from tfppo.training.replicas import check_divides, share_of_replica

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
_LENGTH_BUCKETS = 8  # lengths that parts are cut to: each one is compiled when it first comes up
APPROX_KL = STEP_STATISTICS.index("policy/approx_kl")


def ppo_loss(logits, values, batch: Targets, weights, config: PpoConfig, temperature, policy_coef):
    """The loss of some rows of a minibatch, and STEP_STATISTICS, of their logits [b, R, V].

    The other arguments, and what it returns, are those of `loss_of_tokens`.
    """
    logprobs = token_logprobs(logits, batch.response_ids, temperature)
    entropies = entropy(logits if config.entropy_coef else tf.stop_gradient(logits), temperature)
    return loss_of_tokens(logprobs, entropies, values, batch, weights, config, policy_coef)


def loss_of_tokens(logprobs, entropies, values, batch: Targets, weights, config: PpoConfig, policy_coef):
    """The loss of some rows of a minibatch, and STEP_STATISTICS, as shares of the whole minibatch's.

    Each token enters with its weight in the whole minibatch: however a minibatch is cut, over replicas or accumulation
    steps, the shares add up to the same loss.
    Args:
        logprobs, entropies, values [b, R]: the policy's, of the states in which each response token was chosen.
        weights: three [b, R]: of the policy's losses, of the statistics (mean over tokens), of the critic's loss.
        policy_coef: 0 while the critic alone learns, else 1.
    Returns: (loss, ([8] statistics, largest |ratio - 1| of these rows)).
    """
    policy_weights, token_means, critic_weights = weights
    ratio = importance_ratio(logprobs, batch.old_logprobs)
    surrogate = clipped_surrogate_loss(
        ratio,
        batch.advantages,
        clip_range=config.clip_range,
        clip_range_high=config.clip_range_high,
        dual_clip=config.dual_clip,
    )
    value_errors = clipped_value_loss(values, batch.old_values, batch.returns, value_clip_range=config.value_clip_range)

    policy_loss = masked_sum(surrogate, policy_weights)
    value_loss = masked_sum(value_errors, critic_weights)
    objective = policy_loss
    if config.entropy_coef:
        objective -= config.entropy_coef * masked_sum(entropies, policy_weights)
    if config.kl_loss_coef:
        kl = kl_estimate(logprobs - batch.ref_logprobs, config.kl_loss_estimator)
        objective += config.kl_loss_coef * masked_sum(kl, policy_weights)
    loss = policy_coef * objective + config.value_coef * value_loss

    def mean(per_token):
        return masked_sum(per_token, token_means)

    clipped = is_clipped(ratio, batch.advantages, clip_range=config.clip_range, clip_range_high=config.clip_range_high)
    value_clipped = tf.zeros_like(values, tf.bool)
    if config.value_clip_range is not None:
        value_clipped = is_value_clipped(
            values, batch.old_values, batch.returns, value_clip_range=config.value_clip_range
        )
    statistics = [
        policy_loss,
        value_loss,
        loss,
        mean(0.5 * tf.square(logprobs - batch.old_logprobs)),
        mean(tf.cast(clipped, tf.float32)),
        mean(entropies),
        mean(ratio),
        mean(tf.cast(value_clipped, tf.float32)),
    ]
    ratio_error = tf.reduce_max(tf.where(batch.response_mask > 0, tf.abs(ratio - 1.0), 0.0))
    return loss, (tf.stack(statistics), ratio_error)


def last_position(*masks):
    """Of each row, the last position that is 1 in one of the masks [B, R]; -1 where there is none: int32 [B]."""
    position = tf.range(masks[0].shape[1])
    return tf.reduce_max(tf.stack([tf.where(mask > 0, position, -1) for mask in masks]), axis=[0, 2])


def places_of(*masks, buckets):
    """Which states of [B, R], row after row, one of the masks is 1 for; some others too, so that few counts come up.

    Args: buckets: how many counts. Returns: int32 [N].
    """
    is_real = tf.reduce_any(tf.stack(masks) > 0, axis=0)
    flat = tf.reshape(is_real, [-1])
    places = tf.cast(tf.where(flat)[:, 0], tf.int32)
    count = tf.minimum(bucket_of(tf.maximum(tf.size(places), 1), tf.size(flat), buckets), tf.size(flat))
    other = tf.argmin(tf.cast(flat, tf.int32), output_type=tf.int32)  # there is one where there is room for it
    return tf.concat([places, tf.fill([count - tf.size(places)], other)], axis=0)


def cut_responses(batch, length, buckets):
    """A Targets and weights with responses cut to `length` tokens, rounded up so that there are few different lengths.

    Args: batch: a nest of a Targets of [b, P] prompts and [b, R] others, and of [b, R]; buckets: how many lengths.
    """
    targets, weights = batch
    length = bucket_of(tf.maximum(length, 1), targets.response_ids.shape[1], buckets)

    def cut(tensor):
        return tensor[:, :length]

    prompts = dict(prompt_ids=targets.prompt_ids, prompt_mask=targets.prompt_mask)
    return tf.nest.map_structure(cut, targets)._replace(**prompts), tf.nest.map_structure(cut, weights)


class Learner:
    """Owns the optimizer; turns one rollout into one improved policy.

    `variables` are those that learn; the optimizer knows no others.

    Args:
        policy: built in the strategy's scope.
        temperature: of the sampling, which divides the logits here too.
        dtype: Keras dtype policy of the update, which may be another one than that of sampling; None: the policy's.
        lengths_vary: whether responses may be shorter than R; minibatches then are computed in parts of like length.
        native: of `training_ops`, which then compute the trunks; None: the trunks themselves do.
    """

    def __init__(
        self,
        policy,
        config: PpoConfig,
        reward: RewardConfig,
        strategy,
        temperature=1.0,
        dtype=None,
        lengths_vary=False,
        native=None,
    ):
        part = config.rollout_batch_size // config.num_minibatches // config.accumulation_steps
        check_divides(strategy, "ppo.rollout_batch_size / ppo.num_minibatches / ppo.accumulation_steps", part)
        self.policy, self.config, self.reward = policy, config, reward
        self.strategy, self.temperature = strategy, temperature
        self.variables = policy.trainable_variables
        if config.trainable_blocks is not None:
            self.variables = policy.top_variables(config.trainable_blocks)
        with strategy.scope():
            self.optimizer = make_optimizer(
                config.optimizer,
                self.variables,
                learning_rate=config.learning_rate,
                beta_1=config.adam_beta1,
                beta_2=config.adam_beta2,
                epsilon=config.adam_epsilon,
                weight_decay=config.weight_decay,
            )
        self.optimizer.native_ops = native
        if config.embedding_learning_rate is not None:
            embeddings = policy.language_model.trunk.embeddings()
            self.optimizer.scale_learning_rate(embeddings, config.embedding_learning_rate / config.learning_rate)
        self._groups = [list(range(len(self.variables)))]
        if config.critic_learning_rate is not None:
            # By identity: paths are not unique, as every block has a qkv/kernel.
            own = {id(variable) for variable in policy.critic_variables()}
            is_critic = [id(variable) in own for variable in self.variables]
            critic = [variable for variable, is_own in zip(self.variables, is_critic, strict=True) if is_own]
            self.optimizer.scale_learning_rate(critic, config.critic_learning_rate / config.learning_rate)
            self._groups = [[i for i, is_own in enumerate(is_critic) if is_own is part] for part in (False, True)]
        self.lengths_vary = lengths_vary
        self.dtype = dtype or policy.dtype_policy.name
        jit_compile = resolve_jit_compile(config.jit_compile, self.dtype)
        self._native, self._hidden_states = native, native and partial(hidden_states, native)
        self._checkpointing = nullcontext
        if config.gradient_checkpointing:
            self._checkpointing = partial(recomputing_blocks, policy, compiled=jit_compile)
        self._micro_gradients = tf.function(self._micro_gradients_eagerly, jit_compile=jit_compile)
        self._output_gradients = tf.function(self._output_gradients_eagerly, jit_compile=native is None)
        self.update = tf.function(self._update)

    def _update(self, rollout, shuffle_seed, kl_coef, policy_coef=1.0):
        """Improves the policy by `ppo_epochs` passes over a rollout, or fewer where approx_kl exceeds `target_kl`.

        Args: rollout: Rollout of [B, ...]; shuffle_seed int32 [2]; kl_coef, policy_coef: scalars.
        Returns: dict of scalars.
        """
        config = self.config
        targets, statistics = prepare_targets(rollout, config, self.reward, kl_coef)
        minibatches = self._minibatches(shuffle_seed)

        def minibatch(step):
            """Targets, and which rows of them the step learns from."""
            rows = minibatches[step]
            if config.whiten_scope == "rollout":
                return targets, rows
            own = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), rollout)
            return prepare_targets(own, config, self.reward, kl_coef)[0], tf.range(rows.shape[0])

        num_steps = config.ppo_epochs * config.num_minibatches
        history = tf.TensorArray(tf.float32, num_steps, element_shape=[len(STEP_STATISTICS) + 2])
        first_ratio_error = tf.constant(0.0)
        too_far = tf.constant(False)
        step = tf.constant(0)
        while step < num_steps and not too_far:
            sums, norm, taken, too_far = optimize(
                self.strategy,
                self.optimizer,
                self._replica_gradients,
                (*minibatch(step), policy_coef),
                max_grad_norm=config.max_grad_norm,
                groups=self._groups,
                stop_when=self._is_too_far,
            )
            shares, ratio_errors = sums
            first_ratio_error = tf.where(step == 0, tf.reduce_max(ratio_errors), first_ratio_error)
            history = history.write(step, tf.concat([shares, [norm, tf.cast(taken, tf.float32)]], axis=0))
            step += 1
        means = tf.unstack(tf.reduce_mean(history.stack()[:step], axis=0))
        names = (*STEP_STATISTICS, "policy/gradient_norm", "policy/steps_taken")
        return {
            **statistics,
            **dict(zip(names, means, strict=True)),
            "policy/first_ratio_error": first_ratio_error,
            "policy/epochs": tf.cast(step, tf.float32) / config.num_minibatches,
        }

    def _is_too_far(self, sums):
        if self.config.target_kl is None:
            return tf.constant(False)
        return sums[0][APPROX_KL] > self.config.target_kl

    def _minibatches(self, seed):
        """Row numbers of every minibatch of every epoch, a new order each epoch: int32 [epochs * minibatches, M]."""
        config = self.config
        rows = tf.range(config.rollout_batch_size)
        orders = [
            tf.random.experimental.stateless_shuffle(rows, seed + tf.constant([0, epoch]))
            for epoch in range(config.ppo_epochs)
        ]
        return tf.reshape(tf.stack(orders), [config.ppo_epochs * config.num_minibatches, -1])

    def _replica_gradients(self, targets, rows, policy_coef):
        """This replica's share of a minibatch's gradients and statistics, computed part by part."""
        config = self.config
        mask = tf.gather(targets.response_mask, rows)
        critic_mask = tf.gather(targets.critic_mask, rows)
        weights = (
            token_weights(mask, config.loss_aggregation),
            token_weights(mask, "token_mean"),
            token_weights(critic_mask, "token_mean"),
        )
        rows, weights, lengths = share_of_replica((rows, weights, last_position(mask, critic_mask) + 1))
        num_parts = config.accumulation_steps
        if self.lengths_vary and self._hidden_states is None:  # which leave pads out by themselves
            # Rows of like length share a part, which then is hardly padded. Parts only share a sum: any cut is right.
            order = tf.argsort(lengths, stable=True)
            rows, weights, lengths = tf.nest.map_structure(lambda x: tf.gather(x, order), (rows, weights, lengths))
            num_parts *= math.gcd(rows.shape[0] // num_parts, LENGTH_PARTS)
        rows, weights, lengths = tf.nest.map_structure(
            lambda tensor: tf.reshape(tensor, [num_parts, -1, *tensor.shape[1:]]), (rows, weights, lengths)
        )

        def part(number):
            batch = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows[number]), targets)
            mine, places = tuple(tensor[number] for tensor in weights), None
            if self.lengths_vary and self._hidden_states is not None:
                places = places_of(batch.response_mask, batch.critic_mask, buckets=_LENGTH_BUCKETS)
            elif self.lengths_vary:
                batch, mine = cut_responses((batch, mine), tf.reduce_max(lengths[number]), _LENGTH_BUCKETS)
            return self._micro_gradients(batch, mine, tf.convert_to_tensor(policy_coef, tf.float32), places)

        gradients, (shares, ratio_error) = part(0)
        for number in range(1, num_parts):
            with tf.control_dependencies(gradients):  # one after the other: together they would need all the memory
                more, (more_shares, more_error) = part(number)
            gradients = [
                tf.cast(total, tf.float32) + tf.cast(gradient, tf.float32)
                for total, gradient in zip(gradients, more, strict=True)
            ]
            shares, ratio_error = shares + more_shares, tf.maximum(ratio_error, more_error)
        # The largest error has to survive a sum over replicas: each one fills its own slot.
        context = tf.distribute.get_replica_context()
        slot = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync)
        return gradients, (shares, ratio_error * slot)

    def _micro_gradients_eagerly(self, batch, weights, policy_coef, places=None):
        """Some rows' gradients and statistics, of all their states or of those at places int [N] alone."""
        policy = self.policy
        with (
            computing_in(policy, self.dtype),
            compiling_activations(policy),
            computing_by(policy, self._hidden_states),
            self._checkpointing(),
            casting_once(policy, self._native and "float32") as copies,
        ):
            sequences = batch[:4]
            if places is not None:
                responses = tf.nest.map_structure(lambda tensor: at_places(tensor, places), (batch[2:], weights))
                batch, weights = Targets(*batch[:2], *responses[0]), responses[1]
            copies = [copies.get(id(variable)) for variable in self.variables]
            variables = [variable.value for variable in self.variables]
            # Nothing else is watched: so the backward pass ends at the lowest block that learns.
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*variables, *(copy for copy in copies if copy is not None)])
                states = dict(trunk_coef=policy_coef, places=places)
                if self._native is None:
                    outputs = policy.response_outputs(*sequences, **states)
                else:
                    hidden, values = policy.response_states(*sequences, **states)
                    tokens = (self._native, policy.language_model, hidden, batch.response_ids, self.temperature)
                    outputs = (*logprobs_and_entropies(*tokens), values)
            output_gradients, statistics = self._output_gradients(outputs, batch, weights, policy_coef)
            return dense_gradients(tape, outputs, variables, output_gradients, copies, self._native), statistics

    def _output_gradients_eagerly(self, outputs, batch, weights, policy_coef):
        """Gradients of the loss with respect to its outputs, and the statistics.

        Outputs are logits and values, or of the native operations log-probabilities, entropies and values. Logits, the
        largest array of the step, are compiled for: of them it makes one pass, and no float32 copy of them is kept.
        """
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            if self._native is None:
                loss, statistics = ppo_loss(*outputs, batch, weights, self.config, self.temperature, policy_coef)
            else:
                loss, statistics = loss_of_tokens(*outputs, batch, weights, self.config, policy_coef)
        return tape.gradient(loss, outputs, unconnected_gradients="zero"), statistics

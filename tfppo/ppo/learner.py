"""The PPO update: epochs of shuffled minibatches over one rollout, in one compiled call."""

from functools import partial
from typing import Any

import tensorflow as tf

from tfppo.computation.engine import Engine
from tfppo.config import PpoConfig, RewardConfig
from tfppo.models.policy import Policy
from tfppo.ppo.loss import APPROX_KL, STEP_STATISTICS, make_loss
from tfppo.ppo.minibatches import Cutter, Part, at_places_of, check_minibatches, shuffled_minibatches
from tfppo.ppo.parameters import learning_variables, make_policy_optimizer
from tfppo.ppo.targets import prepare_targets
from tfppo.training.adam import Rest
from tfppo.training.optimization import sum_over_parts
from tfppo.training.programs import CompiledProgram, StackedSteps, Steps, sum_in_a_loop
from tfppo.training.replicas import slot_of_replica
from tfppo.training.workers import workers_of


class Learner:
    """Owns the optimizer; turns one rollout into one improved policy.

    `variables` are those that learn; the optimizer knows no others.

    Args:
        policy: built in the strategy's scope.
        temperature: of the sampling, which divides the logits here too.
        engine: computes the gradients, in a dtype which may be another one than that of sampling.
        lengths_vary: whether responses may be shorter than R; padding then is left out.
    """

    def __init__(
        self,
        policy: Policy,
        config: PpoConfig,
        reward: RewardConfig,
        strategy: tf.distribute.Strategy,
        *,
        temperature: float,
        engine: Engine,
        lengths_vary: bool,
    ):
        check_minibatches(config, strategy)
        self.policy, self.config, self.reward = policy, config, reward
        self.strategy, self.temperature, self.engine = strategy, temperature, engine
        self.workers = workers_of(strategy)
        self.variables = learning_variables(policy, config)
        with strategy.scope():
            self.optimizer, self._clipped_together = make_policy_optimizer(policy, self.variables, config, engine)
        # Where a shape costs a long compilation there is only one: all responses with their padding.
        lengths_vary = lengths_vary and not engine.fixed_shapes
        self._cutter = Cutter(config, lengths_vary=lengths_vary, skips_padding=engine.skips_padding)
        self._part_gradients = engine.function(self._gradients_of_part)
        is_program = engine.fixed_shapes and strategy.num_replicas_in_sync == 1
        self._epochs = CompiledProgram(strategy, self._run_epochs) if is_program else self._run_epochs
        self._steps = self._make_steps(is_program)
        # No AutoGraph, here and elsewhere: loops are explicit, and its rewriting takes seconds of every process.
        self.update = tf.function(self._update, autograph=False)

    def _make_steps(self, is_program) -> Steps | StackedSteps:
        """The optimizer steps of an update. Args: is_program: whether all of them are one program."""
        settings: dict[str, Any] = dict(
            max_grad_norm=self.config.max_grad_norm, groups=self._clipped_together, stop_when=self._is_too_far
        )
        if is_program:
            alike = self.policy.alike_weights(self.variables)
            return StackedSteps(self.optimizer, self._gradients_in_a_loop, alike, **settings)
        gradients = self._replica_gradients
        if self.engine.fixed_shapes:
            gradients = self.engine.function(partial(self._gradients_in_a_loop, (), self.variables))
        return Steps(self.strategy, self.optimizer, gradients, **settings)

    def _update(self, rollout, shuffle_seed, kl_coef, policy_coef=1.0, idle_steps=0):
        """Improves the policy by `ppo_epochs` passes over a rollout, or fewer where approx_kl exceeds `target_kl`.

        Args: rollout: Rollout of [B, ...]; shuffle_seed int32 [2]; kl_coef, policy_coef: scalars, the latter 0 while
            the critic alone learns, else 1; idle_steps: optimizer steps before this update in which it was 0.
        Returns: dict of scalars.
        """
        # Drawn outside: so they are the same whatever compiles the rest.
        minibatches = self._minibatches(shuffle_seed)
        statistics, steps, first_ratio_error, history = self._epochs(
            rollout, minibatches, kl_coef, policy_coef, idle_steps
        )
        means = tf.unstack(tf.reduce_mean(history[:steps], axis=0))
        names = (*STEP_STATISTICS, "policy/gradient_norm", "policy/steps_taken")
        return {
            **statistics,
            **dict(zip(names, means, strict=True)),
            "policy/first_ratio_error": first_ratio_error,
            "policy/epochs": tf.cast(steps, tf.float32) / self.config.num_minibatches,
        }

    def _run_epochs(self, rollout, minibatches, kl_coef, policy_coef, idle_steps):
        """All optimizer steps of an update.

        Args: minibatches: row numbers [steps, M].
        Returns: statistics of the rollout, the number of steps, the first ratio error, and the history [steps, 10].
        """
        config = self.config
        targets, statistics = prepare_targets(rollout, config, self.reward, kl_coef)
        num_steps = config.ppo_epochs * config.num_minibatches
        rest = Rest(tf.equal(policy_coef, 0.0), idle_steps)

        def goes_on(step, too_far, *_):
            # Without a limit the number of steps is known beforehand, and no device waits to be told to go on.
            return step < num_steps if config.target_kl is None else (step < num_steps) & ~too_far

        def learn(step, too_far, first_ratio_error, history, state):
            """One optimizer step, on one minibatch."""
            minibatch = self._targets_of_step(rollout, targets, minibatches[step], kl_coef)
            results, state = self._steps.step(state, (*minibatch, policy_coef), rest)
            (shares, ratio_errors), norm, taken, too_far = results
            first_ratio_error = tf.where(step == 0, tf.reduce_max(ratio_errors), first_ratio_error)
            history = history.write(step, tf.concat([shares, [norm, tf.cast(taken, tf.float32)]], axis=0))
            return step + 1, too_far, first_ratio_error, history, state

        history = tf.TensorArray(tf.float32, num_steps, element_shape=[len(STEP_STATISTICS) + 2])
        start = tf.constant(0), tf.constant(False), tf.constant(0.0), history, self._steps.start()
        steps, _, first_ratio_error, history, state = tf.while_loop(goes_on, learn, start)
        self._steps.finish(state)
        return statistics, steps, first_ratio_error, history.stack()

    def _minibatches(self, seed):
        return shuffled_minibatches(seed, self.config)

    def _targets_of_step(self, rollout, targets, rows, kl_coef):
        """Targets, and which rows of them a step learns from: of the whole rollout, or whitened by themselves."""
        if self.config.whiten_scope == "rollout":
            return targets, rows
        own = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), rollout)
        return prepare_targets(own, self.config, self.reward, kl_coef)[0], tf.range(rows.shape[0])

    def _is_too_far(self, sums):
        if self.config.target_kl is None:
            return tf.constant(False)
        return sums[0][APPROX_KL] > self.config.target_kl

    def _replica_gradients(self, targets, rows, policy_coef):
        """This replica's share of a minibatch's gradients and statistics, computed part by part."""
        policy_coef = tf.convert_to_tensor(policy_coef, tf.float32)
        division = self._cutter.divide(targets, rows)

        def of_part(number):
            return self._part_gradients(self._cutter.part(targets, division, number), policy_coef)

        gradients, (shares, ratio_error) = sum_over_parts(of_part, division.rows.shape[0])
        return gradients, (shares, slot_of_replica(ratio_error))

    def _gradients_in_a_loop(self, stacked, variables, targets, rows, policy_coef):
        """As `_replica_gradients`, for a function that is compiled as a whole.

        Args: stacked, variables: what learns, as of `GraphEngine.gradients`.
        """
        division = self._cutter.divide(targets, rows)

        def of_part(number):
            part = self._cutter.part(targets, division, number)
            return self._gradients_of_part(part, policy_coef, variables, stacked=stacked)

        like = [*(stack for _, stack in stacked), *variables]
        num_parts = self.config.accumulation_steps
        gradients, (shares, ratio_error) = sum_in_a_loop(of_part, num_parts, like, len(STEP_STATISTICS))
        return gradients, (shares, slot_of_replica(ratio_error))

    def _gradients_of_part(self, part: Part, policy_coef, variables=None, **stacks):
        """Gradients and statistics of some rows: of all their states, or of those that count alone."""
        loss = make_loss(*at_places_of(part), self.config, self.temperature, policy_coef)
        return self.engine.gradients(
            self.policy,
            self.variables if variables is None else variables,
            part.targets[:4],
            loss,
            trunk_coef=policy_coef,
            places=part.places,
            **stacks,
        )

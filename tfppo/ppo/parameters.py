"""Which variables PPO trains, at which rates, and which of their gradients are clipped together."""

from collections.abc import Sequence

import keras

from tfppo.computation.engine import Engine
from tfppo.config import PpoConfig
from tfppo.models.policy import Policy
from tfppo.training.optimization import make_optimizer


def learning_variables(policy: Policy, config: PpoConfig) -> list[keras.Variable]:
    """The variables that learn: all, or those of the top `trainable_blocks`.

    Raises: UserError where the model has fewer blocks.
    """
    if config.trainable_blocks is None:
        return policy.trainable_variables
    return policy.top_variables(config.trainable_blocks)


def make_policy_optimizer(
    policy: Policy, variables: Sequence[keras.Variable], config: PpoConfig, engine: Engine
) -> tuple[keras.optimizers.Optimizer, list[list[int]]]:
    """The optimizer of the update, and lists of indices of the variables whose gradients are clipped together.

    Embeddings and a separate critic may learn at rates of their own; such a critic then is clipped by itself too. All
    but the critic's variables may rest, while the critic warms up.

    Args: engine: makes the gradients.
    """
    optimizer = make_optimizer(
        config.optimizer,
        variables,
        learning_rate=config.learning_rate,
        beta_1=config.adam_beta1,
        beta_2=config.adam_beta2,
        epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        kernels=engine.kernels,
        at_once=engine.fixed_shapes,
    )
    if config.embedding_learning_rate is not None:
        embeddings = policy.language_model.trunk.embeddings()
        optimizer.scale_learning_rate(embeddings, config.embedding_learning_rate / config.learning_rate)
    # By identity: paths are not unique, as every block has a qkv/kernel.
    own = {id(variable) for variable in policy.critic_variables()}
    is_critic = [id(variable) in own for variable in variables]
    optimizer.let_rest([variable for variable, is_own in zip(variables, is_critic, strict=True) if not is_own])
    if config.critic_learning_rate is None:
        return optimizer, [list(range(len(variables)))]
    critic = [variable for variable, is_own in zip(variables, is_critic, strict=True) if is_own]
    optimizer.scale_learning_rate(critic, config.critic_learning_rate / config.learning_rate)
    groups = [[i for i, is_own in enumerate(is_critic) if is_own is wanted] for wanted in (False, True)]
    return optimizer, groups

"""The policy: a language model (actor) with a value head (critic)."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfppo.config.validation import validate_trainable_blocks
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.models.reward_model import RewardModel
from tfppo.models.stacking import alike_weights
from tfppo.models.transformer import Transformer, TrunkCache
from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.lengths import at_places

# The KV caches of the actor's trunk and of a separate critic's; the latter is empty where the trunk is shared.
PolicyCache = tuple[TrunkCache, TrunkCache]


def uniform_of_fan_in(fan_in: int, seed: Sequence[int] | np.ndarray, number: int) -> Callable[..., tf.Tensor]:
    """PyTorch's initial weights of a linear layer, kernel and bias alike: uniform within +- 1 / sqrt(fan_in).

    Args: seed: int32 [2]; number: of the weight, so that each weight gets different random numbers.
    Returns: an initializer.
    """
    bound = fan_in**-0.5

    def initializer(shape, dtype):
        own = tf.constant(seed, tf.int32) + tf.constant([0, number])
        return tf.random.stateless_uniform(shape, own, -bound, bound, dtype)

    return initializer


@keras.saving.register_keras_serializable(package="tfppo")
class Policy(keras.Model):
    """Actor and critic: a value head on the shared trunk, or on a critic trunk of its own. A linear head starts at 0.

    Args:
        language_model: the actor.
        separate_critic: whether the critic has a trunk of its own, which starts as a copy of the actor's.
        mlp_value_head: whether the value head has a hidden layer, twice as wide as the trunk, with ReLU.
        head_seed: int32 [2], for the initial weights of such a head.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        separate_critic: bool = False,
        mlp_value_head: bool = False,
        head_seed: Sequence[int] | np.ndarray = (0, 0),
        **kwargs: Any,
    ):
        super().__init__(dtype=language_model.dtype_policy, **kwargs)
        self.language_model = language_model
        self.separate_critic, self.mlp_value_head = separate_critic, mlp_value_head
        self.critic: Transformer | None = None
        if separate_critic:
            trunk = language_model.trunk
            self.critic = Transformer.from_config({**trunk.get_config(), "name": "critic"})
            self.critic.set_weights(trunk.get_weights())
        width = language_model.trunk.sizes["hidden_dim"]
        starts: list[str | Callable[..., tf.Tensor]] = ["zeros", "zeros"]
        if mlp_value_head:
            starts = [uniform_of_fan_in(width, head_seed, number) for number in (0, 1)]
            self.value_hidden_kernel = self._head_weight("value_hidden_kernel", [width, 2 * width], starts[0])
            self.value_hidden_bias = self._head_weight("value_hidden_bias", [2 * width], starts[1])
            width *= 2
            starts = [uniform_of_fan_in(width, head_seed, number) for number in (2, 3)]
        self.value_kernel = self._head_weight("value_kernel", [width, 1], starts[0])
        self.value_bias = self._head_weight("value_bias", [1], starts[1])
        self.built = True

    def _head_weight(self, name, shape, initializer):
        return self.add_weight(shape=shape, initializer=initializer, name=name, dtype="float32", autocast=False)

    def call(self, token_ids: tf.Tensor, padding_mask: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Float32 logits [B, T, V] of the next token and values [B, T] of the state, at every position."""
        hidden = self.language_model.trunk(token_ids, padding_mask)
        critic_hidden = self.critic(token_ids, padding_mask) if self.critic else hidden
        return tf.cast(self.language_model.logits(hidden), tf.float32), self.values_of(critic_hidden)

    def response_outputs(
        self,
        *batch: tf.Tensor,
        trunk_coef: tf.Tensor | None = None,
        places: tf.Tensor | None = None,
        arithmetic: Arithmetic | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits [B, R, V] and values [B, R] of the states in which each response token was chosen.

        The arguments are those of `response_states`.
        """

        def states_of(trunk, *batch):
            return trunk.response_states(*batch, arithmetic=arithmetic)

        hidden, values = self.response_states(*batch, trunk_coef=trunk_coef, places=places, states_of=states_of)
        return self.language_model.logits(hidden, arithmetic), values

    def response_states(
        self,
        prompt_ids: tf.Tensor,
        prompt_mask: tf.Tensor,
        response_ids: tf.Tensor,
        response_mask: tf.Tensor,
        *,
        trunk_coef: tf.Tensor | None = None,
        places: tf.Tensor | None = None,
        states_of: Callable[..., tf.Tensor] = Transformer.response_states,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Hidden states [B, R, D] in which each response token was chosen, and their values [B, R].

        Args: prompt_ids, prompt_mask [B, P], padded on the left; response_ids, response_mask [B, R]; trunk_coef scales
            the gradient that flows from the values into a shared trunk (None: unscaled); places int [N]: flat indices
            into the B x R states; only those are returned, as [N, 1, D] and [N, 1] (None: all are); states_of: (trunk,
            *the four tensors) -> hidden states, for engines that compute these in their own way.
        """
        batch = (prompt_ids, prompt_mask, response_ids, response_mask)
        hidden = states_of(self.language_model.trunk, *batch)
        if self.critic:
            critic_hidden = states_of(self.critic, *batch)
        elif trunk_coef is None:
            critic_hidden = hidden
        else:
            coef = tf.cast(trunk_coef, hidden.dtype)
            critic_hidden = coef * hidden + (1 - coef) * tf.stop_gradient(hidden)
        if places is not None:
            hidden, critic_hidden = at_places(hidden, places), at_places(critic_hidden, places)
        return hidden, self.values_of(critic_hidden)

    def product_weights(self) -> list[keras.Variable]:
        """The variables that enter products, whose copies an `Arithmetic` may hold."""
        return [*self.language_model.product_weights(), *(self.critic.product_weights() if self.critic else [])]

    def critic_variables(self) -> list[keras.Variable]:
        """The variables that only the values depend on: the head, and a separate critic's trunk."""
        trunk = self.critic.trainable_variables if self.critic else []
        hidden = [self.value_hidden_kernel, self.value_hidden_bias] if self.mlp_value_head else []
        return [*trunk, *hidden, self.value_kernel, self.value_bias]

    def top_variables(self, num_blocks: int) -> list[keras.Variable]:
        """The variables above the lower blocks and the embeddings, of the actor and of a separate critic alike.

        Raises: UserError where there are fewer than `num_blocks` blocks.
        """
        trunks = [self.language_model.trunk, *([self.critic] if self.critic else [])]
        validate_trainable_blocks(num_blocks, len(trunks[0].blocks))
        # By identity: paths are not unique, as every block has a qkv/kernel.
        below = {id(variable) for trunk in trunks for variable in trunk.variables_below(num_blocks)}
        return [variable for variable in self.trainable_variables if id(variable) not in below]

    def alike_weights(self, learning: Sequence[keras.Variable]) -> list[tuple[keras.Variable, ...]]:
        """The weights among `learning` that loops over blocks stack, in the actor and in a separate critic.

        Returns: a tuple of one of each block, for each weight.
        """
        trunks = [self.language_model.trunk, *([self.critic] if self.critic else [])]
        ids = frozenset(map(id, learning))
        return [alike for trunk in trunks for alike in alike_weights(trunk.blocks[:-1], ids)]

    def restart_critic(self) -> None:
        """Gives a separate critic's trunk new random weights, drawn from Keras' global generator."""
        critic = self._own_critic()
        critic.set_weights(Transformer.from_config(critic.get_config()).get_weights())

    def _own_critic(self) -> Transformer:
        if self.critic is None:
            raise ValueError("the critic shares the actor's trunk: the policy was made without separate_critic")
        return self.critic

    def copy_critic(self, reward_model: RewardModel) -> None:
        """Starts the separate critic, of a linear head, from a reward model: its values then are the model's scores.

        Raises: UserError where the reward model has other sizes than the critic.
        """
        critic = self._own_critic()
        sizes, wanted = reward_model.trunk.sizes, critic.sizes
        for name in (name for name in wanted if name != "dropout" and sizes[name] != wanted[name]):
            raise UserError(
                f"ppo.critic_init names a reward model with {name} {sizes[name]}, but the policy has {wanted[name]}; "
                f"train one of the policy's sizes"
            )
        critic.set_weights(reward_model.trunk.get_weights())
        self.value_kernel.assign(reward_model.head_kernel)
        self.value_bias.assign(reward_model.head_bias)

    def prefill(
        self, prompt_ids: tf.Tensor, prompt_mask: tf.Tensor, cache_length: int, arithmetic: Arithmetic | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, PolicyCache]:
        """Logits [B, V] and values [B] after a prompt padded on the left, and the cache to go on from there."""
        prompts = (prompt_ids, prompt_mask, cache_length, arithmetic)
        hidden, cache = self.language_model.trunk.prefill(*prompts)
        critic_hidden, critic_cache = self.critic.prefill(*prompts) if self.critic else (hidden, [])
        logits = self.language_model.logits(hidden, arithmetic)
        return logits, self.values_of(critic_hidden), (cache, critic_cache)

    def decode_step(
        self,
        token_ids: tf.Tensor,
        positions: tf.Tensor,
        index: tf.Tensor,
        visible: tf.Tensor,
        cache: PolicyCache,
        arithmetic: Arithmetic | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor, PolicyCache]:
        """Logits [B, V] and values [B] after one more token a row; the arguments are the trunk's."""
        actor_cache, critic_cache = cache
        step = (token_ids, positions, index, visible)
        hidden, actor_cache = self.language_model.trunk.decode_step(*step, actor_cache, arithmetic)
        critic_hidden = hidden
        if self.critic:
            critic_hidden, critic_cache = self.critic.decode_step(*step, critic_cache, arithmetic)
        logits = self.language_model.logits(hidden, arithmetic)
        return logits, self.values_of(critic_hidden), (actor_cache, critic_cache)

    def values_of(self, hidden: tf.Tensor) -> tf.Tensor:
        """Values [...] of hidden states [..., D] of the critic, or of the shared trunk."""
        hidden = tf.cast(hidden, tf.float32)
        if self.mlp_value_head:
            hidden = tf.tensordot(hidden, tf.convert_to_tensor(self.value_hidden_kernel), 1)
            hidden = tf.nn.relu(hidden + self.value_hidden_bias)
        return tf.squeeze(tf.tensordot(hidden, tf.convert_to_tensor(self.value_kernel), 1), -1) + self.value_bias[0]

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "language_model": keras.saving.serialize_keras_object(self.language_model),
            "separate_critic": self.separate_critic,
            "mlp_value_head": self.mlp_value_head,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Policy":
        language_model = keras.saving.deserialize_keras_object(config["language_model"])
        return cls(**{**config, "language_model": language_model})

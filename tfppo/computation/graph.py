"""The engine of TensorFlow's own operations: compiled by XLA, or as a plain graph."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import keras
import tensorflow as tf

from tfppo.computation.differentiation import Statistics, dense_gradients, output_gradients
from tfppo.computation.engine import Decoder, Loss
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.transformer import Responses, Transformer
from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.logprobs import token_logprobs


class GraphEngine:
    """Computes every architecture, in every dtype, on every device.

    Args:
        dtype: Keras dtype policy of products; weights stay what they are, float32.
        compiled: whether XLA compiles.
        recomputes: whether the update keeps each block's input alone, and computes the rest again for the gradient.
        fixed_shapes: see `Engine`; for GPUs.
    """

    skips_padding = False
    kernels = None

    def __init__(self, dtype: str, compiled: bool, recomputes: bool = False, fixed_shapes: bool = False):
        self.dtype, self.compiled, self.fixed_shapes = dtype, compiled, fixed_shapes
        self.name = "XLA" if compiled else "graph"
        self._arithmetic = Arithmetic(
            dtype=keras.DTypePolicy(dtype).compute_dtype, compiled=compiled, stacks=fixed_shapes
        )
        # Activations in one piece inside a plain graph; where XLA compiles all of it, that changes nothing.
        self._of_update = replace(self._arithmetic, fuses_activations=True, recomputes=recomputes)

    def decoder(self, policy: Policy) -> Decoder:
        """See `Engine`. In a plain graph the weights are cast here, once for all steps; XLA does that by itself."""
        return _Decoder(
            policy, self._arithmetic if self.compiled else self._arithmetic.holding(policy.product_weights())
        )

    def piece(self, function: Callable) -> Callable:
        """See `Engine`."""
        return tf.function(function, jit_compile=True, autograph=False) if self.compiled else function

    def write_slot(self, buffer: tf.Tensor, values: tf.Tensor, index: tf.Tensor, *, axis: int) -> tf.Tensor:
        """See `Engine`."""
        return self._arithmetic.write_slot(buffer, values, index, axis=axis)

    def drawer(self, draw: Callable, *, temperature: float, filtered: bool) -> Callable:
        """See `Engine`."""
        del temperature, filtered
        return draw

    def function(self, function: Callable) -> Callable:
        """See `Engine`."""
        return tf.function(function, jit_compile=self.compiled, autograph=False)

    def response_states(self, trunk: Transformer, *batch: tf.Tensor) -> tf.Tensor:
        """See `Engine`."""
        return trunk.response_states(*batch, arithmetic=self._arithmetic)

    def token_logprobs(
        self, language_model: LanguageModel, hidden: tf.Tensor, token_ids: tf.Tensor, temperature: float
    ) -> tf.Tensor:
        """See `Engine`."""

        # Compiled even where the products are not: XLA makes one pass of the logits.
        @tf.function(jit_compile=True, autograph=False)
        def of_logits(logits, token_ids):
            return token_logprobs(logits, token_ids, temperature)

        return language_model.of_logits(of_logits, hidden, token_ids, self._arithmetic)

    def gradients(
        self,
        policy: Policy,
        variables: Sequence[keras.Variable],
        batch: Responses,
        loss: Loss,
        *,
        trunk_coef: tf.Tensor,
        places: tf.Tensor | None,
        stacked: Sequence[tuple[Sequence[keras.Variable], tf.Tensor]] = (),
    ) -> tuple[list[tf.Tensor], Statistics]:
        """See `Engine`.

        Args: stacked: variables of several blocks that are stacked already, and the stack. Of these come the first
            gradients, then those of `variables`, which are the others.
        """
        learning = [*variables, *(variable for alike, _ in stacked for variable in alike)]
        arithmetic = replace(
            self._of_update,
            learning=frozenset(map(id, learning)),
            stacked={id(alike[0]): stack for alike, stack in stacked},
        ).holding(policy.product_weights())
        copies = [*[None] * len(stacked), *(arithmetic.copies.get(id(variable)) for variable in variables)]
        values = [*(stack for _, stack in stacked), *(variable.value for variable in variables)]
        # Nothing else is watched: so the backward pass ends at the lowest block that learns.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*values, *(copy for copy in copies if copy is not None)])
            outputs, loss_of = _outputs(policy, batch, loss, arithmetic, trunk_coef=trunk_coef, places=places)

        # Compiled even in a plain graph: XLA makes one pass of the logits, the largest array of the step, and keeps no
        # float32 copy of them.
        upstream, statistics = output_gradients(loss_of, outputs, compiled=True)
        return dense_gradients(tape, outputs, values, upstream, copies), statistics


def _outputs(policy, batch, loss, arithmetic, **what):
    """What the policy says of responses, and the loss as a function of it: of logits, or where those are many of less.

    Args: what: see `Policy.response_states`.
    """

    def states_of(trunk, *batch):
        return trunk.response_states(*batch, arithmetic=arithmetic)

    hidden, values = policy.response_states(*batch, **what, states_of=states_of)
    model = policy.language_model
    if not model.has_many_logits(hidden):
        return (model.logits(hidden, arithmetic), values), loss.of_logits
    figures_of = loss.figures_of
    if not arithmetic.compiled:  # as a whole; inside of a loop that XLA compiles it can't have a function's gradient
        figures_of = tf.function(figures_of, jit_compile=True, autograph=False)
    figures = model.of_logits_by_chunks(figures_of, hidden, loss.token_ids, arithmetic, num_results=2)
    return (*figures, values), loss.of_tokens


class _Decoder:
    """A policy that computes with one `Arithmetic`."""

    def __init__(self, policy, arithmetic):
        self._policy, self._arithmetic = policy, arithmetic

    def prefill(self, prompt_ids, prompt_mask, cache_length):
        return self._policy.prefill(prompt_ids, prompt_mask, cache_length, self._arithmetic)

    def decode_step(self, token_ids, positions, index, visible, cache):
        return self._policy.decode_step(token_ids, positions, index, visible, cache, self._arithmetic)

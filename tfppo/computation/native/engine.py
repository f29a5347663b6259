"""The engine of the C++ operations, for CPUs: see `Engine`."""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import keras
import tensorflow as tf

from tfppo.computation.differentiation import Statistics, dense_gradients, output_gradients
from tfppo.computation.engine import Decoder, Loss
from tfppo.computation.native.decoder import NativePolicy, draw_natively
from tfppo.computation.native.embedding import add_rows
from tfppo.computation.native.head import logprobs_and_entropies
from tfppo.computation.native.optimizer import apply_adam, squared_norms
from tfppo.computation.native.trunk import hidden_states
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.transformer import Responses, Transformer
from tfppo.ops.masking import positions_from_mask
from tfppo.ops.sequences import teacher_forced
from tfppo.ops.slots import write_slot


class NativeEngine:
    """Samples in float32 and, where the processor has AVX512_BF16, does everything in mixed_bfloat16.

    Args:
        ops: the loaded operations.
        dtype: Keras dtype policy to compute in.
        compiles_filters: whether XLA compiles the drawing of a token among filtered ones, which no operation does.
    """

    name = "C++"
    compiled = False
    skips_padding = True
    fixed_shapes = False

    def __init__(self, ops: ModuleType, dtype: str, compiles_filters: bool = True):
        self.ops, self.dtype, self._compiles_filters = ops, dtype, compiles_filters
        self.kernels = NativeKernels(ops)

    def decoder(self, policy: Policy) -> Decoder:
        """See `Engine`."""
        return NativePolicy(policy, self.ops, self.dtype)

    def piece(self, function: Callable) -> Callable:
        """See `Engine`; nothing here can be compiled."""
        return function

    def write_slot(self, buffer: tf.Tensor, values: tf.Tensor, index: tf.Tensor, *, axis: int) -> tf.Tensor:
        """See `Engine`."""
        return write_slot(buffer, values, index, axis=axis, compiled=False)

    def drawer(self, draw: Callable, *, temperature: float, filtered: bool) -> Callable:
        """See `Engine`."""
        if temperature and not filtered:
            return partial(draw_natively, self.ops, temperature)
        return tf.function(draw, jit_compile=True, autograph=False) if self._compiles_filters else draw

    def function(self, function: Callable) -> Callable:
        """See `Engine`; nothing here can be compiled."""
        return tf.function(function, autograph=False)

    def response_states(self, trunk: Transformer, *batch: tf.Tensor, with_gradient: bool = False) -> tf.Tensor:
        """See `Engine`. Raises: ValueError in another dtype than mixed_bfloat16: in float32 C++ samples only."""
        if self.dtype != "mixed_bfloat16":
            raise ValueError(f"C++ reads whole sequences in mixed_bfloat16, not in {self.dtype}")
        token_ids, mask, start = teacher_forced(*batch)
        return hidden_states(self.ops, trunk, token_ids, mask, positions_from_mask(mask), start, with_gradient)

    def token_logprobs(
        self, language_model: LanguageModel, hidden: tf.Tensor, token_ids: tf.Tensor, temperature: float
    ) -> tf.Tensor:
        """See `Engine`."""
        logprobs, _ = logprobs_and_entropies(
            self.ops,
            language_model.trunk.token_embedding,
            hidden,
            token_ids,
            temperature=temperature,
            pad_id=language_model.pad_id,
            with_gradient=False,
        )
        return logprobs

    def gradients(
        self,
        policy: Policy,
        variables: Sequence[keras.Variable],
        batch: Responses,
        loss: Loss,
        *,
        trunk_coef: tf.Tensor,
        places: tf.Tensor | None,
    ) -> tuple[list[tf.Tensor], Statistics]:
        """See `Engine`."""
        language_model = policy.language_model
        output_matrix = language_model.trunk.token_embedding
        # A copy: so its gradient as the output matrix, which is dense, comes apart from that of the rows looked up.
        copy = tf.cast(output_matrix, tf.float32)
        copies = [copy if variable is output_matrix else None for variable in variables]
        values = [variable.value for variable in variables]
        states_of = partial(self.response_states, with_gradient=True)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*values, *(copy for copy in copies if copy is not None)])
            hidden, state_values = policy.response_states(
                *batch, trunk_coef=trunk_coef, places=places, states_of=states_of
            )
            tokens = logprobs_and_entropies(
                self.ops,
                copy,
                hidden,
                loss.token_ids,
                temperature=loss.temperature,
                pad_id=language_model.pad_id,
            )
            outputs = (*tokens, state_values)
        upstream, statistics = output_gradients(loss.of_tokens, outputs, compiled=False)
        return dense_gradients(tape, outputs, values, upstream, copies, self.kernels.add_rows), statistics


class NativeKernels:
    """Norms of gradients, Adam's step and sums of rows, each in one pass over memory."""

    def __init__(self, ops: ModuleType):
        self.squared_norms = partial(squared_norms, ops)
        self.apply_adam = partial(apply_adam, ops)
        self.add_rows = partial(add_rows, ops)

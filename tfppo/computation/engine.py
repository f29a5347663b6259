"""What an engine does: everything that depends on how a model is computed, and nothing that depends on the algorithm.

Sampler, collector and learner are handed an engine and never ask which one. There are two classes: `GraphEngine`
(TensorFlow's plain graph, or XLA) and `NativeEngine` (C++ for CPUs). docs/architecture.md says how to add a third.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

from tfppo.computation.differentiation import Statistics
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.transformer import Responses, Transformer
from tfppo.ops.logprobs import entropy, token_logprobs

# The KV cache of a decoder: a nest of tensors whose structure only that decoder knows, and whose axis 0 are the rows:
# rows that have stopped are left out of each of them.
Cache = Sequence[Any]


class Loss(NamedTuple):
    """A loss of chosen tokens, to be differentiated by an engine.

    Args:
        of_tokens: log-probabilities, entropies and values, float32 [b, R] each -> (loss, statistics).
        token_ids: int32 [b, R], the tokens that were chosen.
        temperature: divides the logits.
        entropy_learns: whether the entropies have a part in the loss's gradient.
    """

    of_tokens: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, Statistics]]
    token_ids: tf.Tensor
    temperature: float
    entropy_learns: bool

    def of_logits(self, logits: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, Statistics]:
        """The loss and the statistics, from logits [b, R, V] and values [b, R]."""
        return self.of_tokens(*self.figures_of(logits, self.token_ids), values)

    def figures_of(self, logits: tf.Tensor, token_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What the loss asks of logits [..., V]: log-probabilities of the tokens [...], and entropies [...]."""
        logprobs = token_logprobs(logits, token_ids, self.temperature)
        entropies = entropy(logits if self.entropy_learns else tf.stop_gradient(logits), self.temperature)
        return logprobs, entropies


class Decoder(Protocol):
    """A policy whose weights are read, ready to continue prompts token by token."""

    def prefill(
        self, prompt_ids: tf.Tensor, prompt_mask: tf.Tensor, cache_length: int
    ) -> tuple[tf.Tensor, tf.Tensor, Cache]:
        """Logits [B, V] and values [B] after prompts padded on the left, and the cache to go on from there."""

    def decode_step(
        self, token_ids: tf.Tensor, positions: tf.Tensor, index: tf.Tensor, visible: tf.Tensor, cache: Cache
    ) -> tuple[tf.Tensor, tf.Tensor, Cache]:
        """Logits [B, V] and values [B] after one more token a row, and the cache with it at slot `index`."""


class Kernels(Protocol):
    """Operations of an engine that optimizer steps and gradients use in place of TensorFlow's own."""

    def squared_norms(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """The sum of squares of each of N gradients: float32 [N]."""

    def apply_adam(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        momentums: Sequence[tf.Variable],
        velocities: Sequence[tf.Variable],
        *,
        scales: tf.Tensor,
        rates: tf.Tensor,
        decays: tf.Tensor,
        beta_1: float,
        beta_2: float,
        epsilon: float | tf.Tensor,
    ) -> None:
        """One step of Adam on N variables; `native.optimizer.apply_adam` defines the arguments."""

    def add_rows(self, matrix: tf.Tensor, rows: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """matrix [V, D] with rows [N, D] added to its rows `places` int [N]."""


class Engine(Protocol):
    """One way to compute a model, in one dtype."""

    name: str  # "C++", "XLA" or "graph"
    dtype: str  # Keras dtype policy
    compiled: bool  # whether XLA compiles what goes through `piece` and `function`
    skips_padding: bool  # whether padded positions of a batch cost nothing: else the caller cuts it to its longest row
    # Whether every shape costs a compilation of many seconds, and every launch microseconds, as under XLA on a GPU: the
    # caller then neither cuts nor halves batches, and makes one program of as much as it can.
    fixed_shapes: bool

    @property
    def kernels(self) -> Kernels | None:
        """Norms, Adam and sums of rows for `training.optimization`; None: TensorFlow's own."""

    # Sampling

    def decoder(self, policy: Policy) -> Decoder:
        """The policy with its weights as they are now."""

    def piece(self, function: Callable) -> Callable:
        """The function, a part of the sampling loop, compiled by XLA if this engine uses it."""

    def write_slot(self, buffer: tf.Tensor, values: tf.Tensor, index: tf.Tensor, *, axis: int) -> tf.Tensor:
        """The buffer with `values` at `index` of an axis, written in place where nobody else needs the buffer."""

    def drawer(self, draw: Callable, *, temperature: float, filtered: bool) -> Callable:
        """`draw`, or a faster function with the same results: (logits [B, V], uniforms [B]) -> (tokens, logprobs).

        Args: temperature: by which `draw` divides, 0 for the likeliest token; filtered: whether `draw` masks tokens.
        """

    # Teacher forcing, without gradients

    def function(self, function: Callable) -> Callable:
        """A `tf.function` of a pass over whole sequences, compiled by XLA if this engine uses it."""

    def response_states(self, trunk: Transformer, *batch: tf.Tensor) -> tf.Tensor:
        """As `Transformer.response_states`."""

    def token_logprobs(
        self, language_model: LanguageModel, hidden: tf.Tensor, token_ids: tf.Tensor, temperature: float
    ) -> tf.Tensor:
        """Log-probabilities [B, R] of tokens in hidden states [B, R, D]."""

    # The update

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
        """Gradients of a loss with respect to variables, and its statistics.

        An engine of `fixed_shapes` takes weights that are stacked already besides; see `GraphEngine`.
        Args: batch, trunk_coef, places: see `Policy.response_states`.
        """

"""A pre-LN decoder-only Transformer trunk with a KV cache.

The layout is GPT-2's (Radford et al. 2019): learned absolute positions, fused query-key-value projection, GELU, a
final layer norm. Weights exist from construction on, so the trunk can be run through its entries in any order:

* `hidden_states`  all positions at once (training, scoring); `call` is Keras' name for it
* `prefill`        all prompt positions at once, and the cache that goes on from there
* `decode_step`    one position more, with the cache

The cache of a block is a pair of [B, H, C, D/H] tensors: attention then is one batched product, and a step writes one
slot in place.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from tfppo.config.validation import validate_sizes
from tfppo.models.layers import BlockCache, LayerNorm, TransformerBlock, dropout, fold
from tfppo.models.stacking import collect_from_blocks, through_blocks
from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.attention import attention_within
from tfppo.ops.masking import positions_from_mask
from tfppo.ops.sequences import teacher_forced
from tfppo.ops.shapes import size_of

# prompt_ids, prompt_mask [B, P], padded on the left; response_ids, response_mask [B, R], padded on the right.
Responses = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]
# The KV cache of a trunk: keys and values [B, H, C, D/H] of each block.
TrunkCache = Sequence[BlockCache]


@keras.saving.register_keras_serializable(package="tfppo")
class Transformer(keras.layers.Layer):
    """Embeddings, blocks and the final norm: token ids [B, T] to hidden states [B, T, D]."""

    architecture = "gpt2"  # engines state which architectures they compute

    def __init__(
        self,
        vocabulary_size: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        intermediate_dim: int,
        max_sequence_length: int,
        dropout: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.sizes: dict[str, Any] = dict(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim,
            max_sequence_length=max_sequence_length,
            dropout=dropout,
        )
        validate_sizes(**self.sizes)
        self.dropout = dropout
        self.num_heads, self.head_dim = num_heads, hidden_dim // num_heads
        normal = keras.initializers.RandomNormal(stddev=0.02)
        self.token_embedding = self.add_weight(
            shape=[vocabulary_size, hidden_dim], initializer=normal, name="token_embedding"
        )
        self.position_embedding = self.add_weight(
            shape=[max_sequence_length, hidden_dim], initializer=normal, name="position_embedding"
        )
        self.blocks = [
            TransformerBlock(
                hidden_dim,
                num_heads,
                intermediate_dim,
                dropout,
                # GPT-2's scaling: the residual stream keeps its size whatever the depth.
                residual_stddev=0.02 * (2 * num_layers) ** -0.5,
                dtype=self.dtype_policy,
                name=f"block_{i}",
            )
            for i in range(num_layers)
        ]
        self.final_norm = LayerNorm(hidden_dim, dtype=self.dtype_policy, name="final_norm")
        self.built = True

    def embeddings(self) -> list[keras.Variable]:
        """The variables of the embeddings; the first is the language model's output matrix too."""
        return [self.token_embedding, self.position_embedding]

    def variables_below(self, num_blocks: int) -> list[keras.Variable]:
        """The variables below the top `num_blocks` blocks, which must be 1 or more: embeddings and other blocks."""
        lower = [variable for block in self.blocks[:-num_blocks] for variable in block.variables]
        return [*self.embeddings(), *lower]

    @property
    def arithmetic(self) -> Arithmetic:
        """What the trunk computes with where nothing else is asked for: products in its own compute dtype."""
        return Arithmetic(dtype=self.compute_dtype)

    def product_weights(self) -> list[keras.Variable]:
        """The variables that enter the blocks' products, whose copies an `Arithmetic` may hold."""
        return [variable for block in self.blocks for variable in block.product_weights()]

    def call(
        self,
        token_ids: tf.Tensor,
        padding_mask: tf.Tensor | None = None,
        segment_ids: tf.Tensor | None = None,
        positions: tf.Tensor | None = None,
        dropout_seed: tf.Tensor | None = None,
        start: int | tf.Tensor = 0,
    ) -> tf.Tensor:
        """As `hidden_states`, in the trunk's own dtype."""
        return self.hidden_states(token_ids, padding_mask, segment_ids, positions, dropout_seed, start)

    def hidden_states(
        self,
        token_ids: tf.Tensor,
        padding_mask: tf.Tensor | None = None,
        segment_ids: tf.Tensor | None = None,
        positions: tf.Tensor | None = None,
        dropout_seed: tf.Tensor | None = None,
        start: int | tf.Tensor = 0,
        arithmetic: Arithmetic | None = None,
    ) -> tf.Tensor:
        """Hidden states [B, T - start, D] of the positions from `start` on.

        Args: token_ids int [B, T]; padding_mask [B, T], 1 for a real token (all real where it is None), or for packed
            sequences segment_ids and positions [B, T]; dropout_seed int32 [2] turns dropout on; start: for earlier
            positions, the last block computes keys and values only.
        """
        arithmetic = arithmetic or self.arithmetic
        if segment_ids is None:
            segment_ids = tf.ones_like(token_ids) if padding_mask is None else tf.cast(padding_mask, tf.int32)
        if positions is None:
            positions = positions_from_mask(tf.cast(segment_ids > 0, tf.int32))
        attention = attention_within(segment_ids)
        # Read in the dtype of products, as Keras reads variables in a layer's call; a decoding step adds in float32.
        embedded = self.embed(token_ids, positions, arithmetic.dtype, summed_in=arithmetic.dtype)
        x = dropout(embedded, self.dropout, dropout_seed)

        def states(block, number, x, arithmetic, start=0):
            return block.states(x, attention, arithmetic, fold(dropout_seed, 1000 * (number + 1)), start)

        *lower, last = self.blocks
        x = through_blocks(lower, x, states, arithmetic)
        x = states(last, len(lower), x, arithmetic, start)
        return self.final_norm.normalize(x, arithmetic)

    def computed_by(self, arithmetic: Arithmetic | None) -> Callable[..., tf.Tensor]:
        """`hidden_states` by an arithmetic; None: the layer as Keras calls it, by its own."""
        return self if arithmetic is None else partial(self.hidden_states, arithmetic=arithmetic)

    def response_states(
        self,
        prompt_ids: tf.Tensor,
        prompt_mask: tf.Tensor,
        response_ids: tf.Tensor,
        response_mask: tf.Tensor,
        *,
        arithmetic: Arithmetic | None = None,
    ) -> tf.Tensor:
        """Hidden states [B, R, D] of the states in which each response token was chosen.

        Args: prompt_ids, prompt_mask [B, P], padded on the left; response_ids, response_mask [B, R].
        """
        token_ids, mask, start = teacher_forced(prompt_ids, prompt_mask, response_ids, response_mask)
        with tf.name_scope(self.name):
            return self.hidden_states(token_ids, mask, start=start, arithmetic=arithmetic)

    def prefill(
        self, token_ids: tf.Tensor, padding_mask: tf.Tensor, cache_length: int, arithmetic: Arithmetic | None = None
    ) -> tuple[tf.Tensor, TrunkCache]:
        """Hidden states [B, D] after a prompt padded on the left, and a cache of `cache_length` positions."""
        arithmetic = arithmetic or self.arithmetic
        attention = attention_within(tf.cast(padding_mask, tf.int32))
        x = self.embed(token_ids, positions_from_mask(padding_mask), arithmetic.dtype)
        room = cache_length - size_of(token_ids, 1)

        def with_cache(block, x, arithmetic, start=0):
            x, pair = block.with_cache(x, attention, arithmetic, start=start)
            return x, tuple(tf.transpose(part, [0, 2, 1, 3]) for part in pair)

        *lower, last = self.blocks
        shape = [size_of(token_ids, 0), self.num_heads, size_of(token_ids, 1), self.head_dim]
        x, pairs = collect_from_blocks(lower, x, with_cache, arithmetic, [shape, shape])
        x, pair = with_cache(last, x, arithmetic, size_of(token_ids, 1) - 1)
        # Room is made last: what a loop collects is there twice for a moment.
        caches = [
            tuple(tf.pad(part, [[0, 0], [0, 0], [0, room], [0, 0]]) for part in by_head) for by_head in (*pairs, pair)
        ]
        return self.final_norm.normalize(x, arithmetic)[:, 0], caches

    def decode_step(
        self,
        token_ids: tf.Tensor,
        positions: tf.Tensor,
        index: tf.Tensor,
        visible: tf.Tensor,
        caches: TrunkCache,
        arithmetic: Arithmetic | None = None,
    ) -> tuple[tf.Tensor, TrunkCache]:
        """Hidden states [B, D] of one more token a row, and the caches with it at slot `index`.

        Args: token_ids, positions int [B]; index scalar; visible bool [B, C], the slots that may be seen, `index`
            among them.
        """
        arithmetic = arithmetic or self.arithmetic
        x = self.embed(token_ids, positions, arithmetic.dtype)
        grown = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block.decode_step(x, cache, index, visible[:, None, None, :], arithmetic)
            grown.append(cache)
        return self.final_norm.normalize(x, arithmetic), grown

    def embed(
        self,
        token_ids: tf.Tensor,
        positions: tf.Tensor,
        dtype: str | tf.DType | None = None,
        summed_in: str = "float32",
    ) -> tf.Tensor:
        """Sums [..., D] of the tokens' and the positions' embeddings, in a dtype (None: the compute dtype).

        Args: summed_in: the dtype that both are read and added in.
        """
        tokens = tf.gather(tf.cast(self.token_embedding, summed_in), token_ids)
        places = tf.gather(tf.cast(self.position_embedding, summed_in), positions)
        return tf.cast(tokens + places, dtype or self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.sizes}

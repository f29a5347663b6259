"""A pre-LN decoder-only Transformer trunk with a KV cache.

The layout is GPT-2's (Radford et al. 2019): learned absolute positions, fused query-key-value projection, GELU, a
final layer norm. Weights exist from construction on, so the trunk can be run through its three entries in any order:

* `call`         all positions at once (training, scoring)
* `prefill`      all prompt positions at once, and the cache that goes on from there
* `decode_step`  one position more, with the cache

The cache of a block is a pair of [B, H, C, D/H] tensors: attention then is one batched product, and a step writes one
slot in place.
"""

import keras
import tensorflow as tf

from tfppo.errors import UserError
from tfppo.models.precision import cast_matrices
from tfppo.ops.activations import gelu
from tfppo.ops.masking import positions_from_mask
from tfppo.ops.shapes import size_of
from tfppo.ops.slots import write_slot

LAYER_NORM_EPSILON = 1e-5
MASKED_SCORE = -1e9


def check_sizes(*, vocabulary_size, num_layers, num_heads, hidden_dim, intermediate_dim, max_sequence_length, dropout):
    """Raises UserError, naming field, value and remedy, for sizes that make no Transformer."""
    sizes = dict(
        vocabulary_size=vocabulary_size,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        intermediate_dim=intermediate_dim,
        max_sequence_length=max_sequence_length,
    )
    for name, value in sizes.items():
        if value < 1:
            raise UserError(f"model.{name} is {value}; it must be at least 1")
    if hidden_dim % num_heads:
        raise UserError(
            f"model.num_heads is {num_heads}, which does not divide model.hidden_dim {hidden_dim}; "
            f"choose a number of heads that divides it"
        )
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"model.dropout is {dropout}; it must be at least 0 and below 1")


def causal_mask(segment_ids):
    """Which position may see which: earlier or equal ones of the same segment.

    Args: segment_ids int [B, T]; a padding mask is the special case of segments 0 and 1.
    Returns: bool [B, 1, T, T].
    """
    length = tf.shape(segment_ids)[1]
    causal = tf.linalg.band_part(tf.ones([length, length], tf.bool), -1, 0)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return (same & causal[None])[:, None]


def _dropout(x, rate, seed):
    if seed is None or rate == 0.0:
        return x
    return tf.nn.experimental.stateless_dropout(x, rate, seed, rng_alg="philox")


def _fold(seed, number):
    """A seed of its own for the number-th use of a seed; None stays None."""
    return None if seed is None else seed + tf.constant([0, number], seed.dtype)


@keras.saving.register_keras_serializable(package="tfppo")
class LayerNorm(keras.layers.Layer):
    """Layer normalisation over the last axis, computed in float32 under every dtype policy."""

    def __init__(self, hidden_dim, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.gamma = self.add_weight(shape=[hidden_dim], initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=[hidden_dim], initializer="zeros", name="beta", autocast=False)
        self.built = True

    def call(self, x):
        x32 = tf.cast(x, tf.float32)
        mean = tf.reduce_mean(x32, axis=-1, keepdims=True)
        centred = x32 - mean
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        normed = centred * tf.math.rsqrt(variance + LAYER_NORM_EPSILON)
        return tf.cast(normed * self.gamma + self.beta, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "hidden_dim": self.hidden_dim}


@keras.saving.register_keras_serializable(package="tfppo")
class Projection(keras.layers.Layer):
    """x @ kernel + bias over the last axis, as one two-dimensional product whatever the rank of x."""

    def __init__(self, input_dim, output_dim, stddev=0.02, **kwargs):
        super().__init__(**kwargs)
        self.input_dim, self.output_dim, self.stddev = input_dim, output_dim, stddev
        normal = keras.initializers.RandomNormal(stddev=stddev)
        self.kernel = self.add_weight(shape=[input_dim, output_dim], initializer=normal, name="kernel")
        self.bias = self.add_weight(shape=[output_dim], initializer="zeros", name="bias")
        self.held_matrices = None  # see tfppo/models/precision.py: casting_once
        self.built = True

    def matrices(self):
        """The variables that `cast_matrices` casts."""
        return self.kernel, self.bias

    def call(self, x):
        kernel, bias = cast_matrices(self)
        x2d = tf.reshape(tf.cast(x, self.compute_dtype), [-1, self.input_dim])
        y = tf.nn.bias_add(tf.matmul(x2d, kernel), bias)
        return tf.reshape(y, [*(size_of(x, axis) for axis in range(len(x.shape) - 1)), self.output_dim])

    def get_config(self):
        sizes = {"input_dim": self.input_dim, "output_dim": self.output_dim, "stddev": self.stddev}
        return {**super().get_config(), **sizes}


@keras.saving.register_keras_serializable(package="tfppo")
class TransformerBlock(keras.layers.Layer):
    """Layer norm, self-attention and residual; layer norm, MLP and residual."""

    def __init__(self, hidden_dim, num_heads, intermediate_dim, dropout=0.0, residual_stddev=0.02, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim, self.num_heads, self.intermediate_dim = hidden_dim, num_heads, intermediate_dim
        self.dropout, self.residual_stddev = dropout, residual_stddev
        self.head_dim = hidden_dim // num_heads
        self.compiled_activation = False  # see tfppo/models/precision.py: compiling_activations
        self.recompute = None  # see tfppo/models/precision.py: recomputing_blocks
        policy = self.dtype_policy
        self.attention_norm = LayerNorm(hidden_dim, dtype=policy, name="attention_norm")
        self.qkv = Projection(hidden_dim, 3 * hidden_dim, dtype=policy, name="qkv")
        self.attention_out = Projection(
            hidden_dim, hidden_dim, stddev=residual_stddev, dtype=policy, name="attention_out"
        )
        self.mlp_norm = LayerNorm(hidden_dim, dtype=policy, name="mlp_norm")
        self.mlp_in = Projection(hidden_dim, intermediate_dim, dtype=policy, name="mlp_in")
        self.mlp_out = Projection(intermediate_dim, hidden_dim, stddev=residual_stddev, dtype=policy, name="mlp_out")
        self.built = True

    def call(self, x, attention_mask, dropout_seed=None, start=0):
        """x [B, T, D], attention_mask bool [B, 1, T, T] -> [B, T - start, D], of the positions from `start` on."""
        if self.recompute is None:
            return self.with_cache(x, attention_mask, dropout_seed, start)[0]
        projections = (self.qkv, self.attention_out, self.mlp_in, self.mlp_out)
        matrices = [cast_matrices(projection) for projection in projections]

        def block_of(x, matrices):  # as arguments: what it only captured would have no gradient
            held = [projection.held_matrices for projection in projections]
            for projection, pair in zip(projections, matrices, strict=True):
                projection.held_matrices = pair
            try:
                return self.with_cache(x, attention_mask, dropout_seed, start)[0]
            finally:
                for projection, pair in zip(projections, held, strict=True):
                    projection.held_matrices = pair

        return self.recompute(block_of, x, matrices)

    def with_cache(self, x, attention_mask, dropout_seed=None, start=0):
        """As `call`, and the keys and values [B, T, H, D/H] that it computed."""
        query, key, value = self._split(self.qkv(self.attention_norm(x)))
        x, query, attention_mask = x[:, start:], query[:, start:], attention_mask[:, :, start:]
        scores = tf.einsum("bqhd,bkhd->bhqk", query, key)
        context = tf.einsum("bhqk,bkhd->bqhd", self._softmax(scores, attention_mask), value)
        x = self._residuals(x, context, dropout_seed)
        return x, (key, value)

    def decode_step(self, x, cache, index, visible, compiled):
        """x [B, D], cache of [B, H, C, D/H], visible bool [B, 1, 1, C] -> [B, D] and the cache with one slot more."""
        query, key, value = self._split(self.qkv(self.attention_norm(x)))
        keys, values = (
            write_slot(old, new, index, axis=2, compiled=compiled) for old, new in zip(cache, (key, value), strict=True)
        )
        scores = tf.matmul(query[:, :, None], keys, transpose_b=True)
        context = tf.matmul(self._softmax(scores, visible), values)
        return self._residuals(x, context, None), (keys, values)

    def _split(self, qkv):
        leading = [size_of(qkv, axis) for axis in range(len(qkv.shape) - 1)]
        query, key, value = tf.unstack(tf.reshape(qkv, [*leading, 3, self.num_heads, self.head_dim]), num=3, axis=-3)
        return query * tf.cast(self.head_dim**-0.5, query.dtype), key, value

    def _softmax(self, scores, mask):
        scores = tf.where(mask, tf.cast(scores, tf.float32), MASKED_SCORE)
        return tf.cast(tf.nn.softmax(scores), self.compute_dtype)

    def _residuals(self, x, context, dropout_seed):
        context = tf.reshape(context, tf.shape(x))
        x += _dropout(self.attention_out(context), self.dropout, _fold(dropout_seed, 0))
        hidden = gelu(self.mlp_in(self.mlp_norm(x)), compiled=self.compiled_activation)
        return x + _dropout(self.mlp_out(hidden), self.dropout, _fold(dropout_seed, 1))

    def get_config(self):
        sizes = dict(hidden_dim=self.hidden_dim, num_heads=self.num_heads, intermediate_dim=self.intermediate_dim)
        rest = dict(dropout=self.dropout, residual_stddev=self.residual_stddev)
        return {**super().get_config(), **sizes, **rest}


@keras.saving.register_keras_serializable(package="tfppo")
class Transformer(keras.layers.Layer):
    """Embeddings, blocks and the final norm: token ids [B, T] to hidden states [B, T, D]."""

    def __init__(
        self,
        vocabulary_size,
        num_layers,
        num_heads,
        hidden_dim,
        intermediate_dim,
        max_sequence_length,
        dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.sizes = dict(
            vocabulary_size=vocabulary_size,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            intermediate_dim=intermediate_dim,
            max_sequence_length=max_sequence_length,
            dropout=dropout,
        )
        check_sizes(**self.sizes)
        self.dropout = dropout
        self.num_heads, self.head_dim = num_heads, hidden_dim // num_heads
        normal = keras.initializers.RandomNormal(stddev=0.02)
        self.token_embedding = self.add_weight(
            shape=[vocabulary_size, hidden_dim], initializer=normal, name="token_embedding"
        )
        self.position_embedding = self.add_weight(
            shape=[max_sequence_length, hidden_dim], initializer=normal, name="position_embedding"
        )
        self.computed_by = None  # see tfppo/models/precision.py: computing_by
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

    def embeddings(self):
        """The variables of the embeddings; the first is the language model's output matrix too."""
        return [self.token_embedding, self.position_embedding]

    def variables_below(self, num_blocks):
        """The variables below the top `num_blocks` blocks, which must be 1 or more: embeddings and other blocks."""
        lower = [variable for block in self.blocks[:-num_blocks] for variable in block.variables]
        return [*self.embeddings(), *lower]

    def call(self, token_ids, padding_mask=None, segment_ids=None, positions=None, dropout_seed=None, start=0):
        """Hidden states [B, T - start, D] of the positions from `start` on.

        Args: token_ids int [B, T]; padding_mask [B, T], 1 for a real token (all real where it is None), or for packed
            sequences segment_ids and positions [B, T]; dropout_seed int32 [2] turns dropout on; start: of earlier
            positions the last block computes keys and values alone.
        """
        if segment_ids is None:
            segment_ids = tf.ones_like(token_ids) if padding_mask is None else tf.cast(padding_mask, tf.int32)
        if positions is None:
            positions = positions_from_mask(tf.cast(segment_ids > 0, tf.int32))
        attention_mask = causal_mask(segment_ids)
        x = _dropout(self.embed(token_ids, positions), self.dropout, dropout_seed)
        for number, (block, first) in enumerate(self._with_starts(start)):
            x = block(x, attention_mask, dropout_seed=_fold(dropout_seed, 1000 * (number + 1)), start=first)
        return self.final_norm(x)

    def response_states(self, prompt_ids, prompt_mask, response_ids, response_mask):
        """Hidden states [B, R, D] of the states in which each response token was chosen.

        The state of the first one is the prompt: each is read one position before its token, and the last token's own
        position is not computed at all.
        Args: prompt_ids, prompt_mask [B, P], padded on the left; response_ids, response_mask [B, R].
        """
        token_ids = tf.concat([prompt_ids, response_ids[:, :-1]], axis=1)
        mask = tf.concat([tf.cast(prompt_mask, tf.int32), tf.cast(response_mask[:, :-1], tf.int32)], axis=1)
        start = size_of(prompt_ids, 1) - 1
        if self.computed_by is not None:
            return self.computed_by(self, token_ids, mask, positions_from_mask(mask), start)
        return self(token_ids, mask, start=start)

    def prefill(self, token_ids, padding_mask, cache_length):
        """Hidden states [B, D] after a prompt padded on the left, and a cache of `cache_length` positions."""
        attention_mask = causal_mask(tf.cast(padding_mask, tf.int32))
        x = self.embed(token_ids, positions_from_mask(padding_mask))
        room = cache_length - size_of(token_ids, 1)
        caches = []
        for block, start in self._with_starts(size_of(token_ids, 1) - 1):
            x, pair = block.with_cache(x, attention_mask, start=start)
            by_head = (tf.transpose(part, [0, 2, 1, 3]) for part in pair)
            caches.append(tuple(tf.pad(part, [[0, 0], [0, 0], [0, room], [0, 0]]) for part in by_head))
        return self.final_norm(x)[:, 0], caches

    def decode_step(self, token_ids, positions, index, visible, caches, compiled=False):
        """Hidden states [B, D] of one more token a row, and the caches with it at slot `index`.

        Args: token_ids, positions int [B]; index scalar; visible bool [B, C], the slots that may be seen, `index`
            among them; compiled: whether XLA compiles the graph.
        """
        x = self.embed(token_ids, positions)
        grown = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block.decode_step(x, cache, index, visible[:, None, None, :], compiled)
            grown.append(cache)
        return self.final_norm(x), grown

    def _with_starts(self, start):
        """Each block with the first position that it computes: all need every position, but for the last block."""
        return zip(self.blocks, [0] * (len(self.blocks) - 1) + [start], strict=True)

    def embed(self, token_ids, positions, dtype=None):
        """Sums [..., D] of the tokens' and the positions' embeddings, in a dtype (None: the compute dtype)."""
        tokens = tf.gather(tf.convert_to_tensor(self.token_embedding), token_ids)
        places = tf.gather(tf.convert_to_tensor(self.position_embedding), positions)
        return tf.cast(tokens + places, dtype or self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), **self.sizes}

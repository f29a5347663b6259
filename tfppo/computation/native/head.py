"""Log-probabilities of chosen tokens, their entropies and gradients through the native operations.

Logits are float32 sums of products of bfloat16 numbers; for the gradient, float16 differences between them are kept.
"""

from types import ModuleType

import keras
import tensorflow as tf

from tfppo.ops.masking import MASKED_SCORE


def logprobs_and_entropies(
    ops: ModuleType,
    embedding: tf.Tensor | keras.Variable,
    hidden: tf.Tensor,
    token_ids: tf.Tensor,
    *,
    temperature: float,
    pad_id: int,
    with_gradient: bool = True,
) -> tuple[tf.Tensor, ...]:
    """As `token_logprobs` and `entropy` of a language model's logits: two float32 [...].

    Args: ops: the loaded operations; embedding [V, D] float32; hidden [..., D]; token_ids int32 [...]; with_gradient:
        False keeps nothing for it.
    """
    embedding = tf.convert_to_tensor(embedding)
    tokens = tf.reshape(token_ids, [-1])
    attributes = dict(temperature=temperature, masked=pad_id, penalty=MASKED_SCORE)

    @tf.custom_gradient
    def head(hidden, embedding):
        logprobs, entropies, *kept = ops.tfppo_head(
            hidden=hidden, embedding=embedding, tokens=tokens, keep=int(with_gradient), **attributes
        )

        def gradient(dlogprobs, dentropies):
            dhidden, dembedding, _ = ops.tfppo_head_gradient(
                hidden=hidden,
                embedding=embedding,
                tokens=tokens,
                logprobs=logprobs,
                entropies=entropies,
                dlogprobs=dlogprobs,
                dentropies=dentropies,
                **dict(zip(("totals", "bases", "kept"), kept, strict=True)),
                keep=1,
                **attributes,
            )
            return dhidden, dembedding

        return (logprobs, entropies), gradient

    flat = tf.reshape(tf.cast(hidden, tf.float32), [-1, embedding.shape[1]])
    return tuple(tf.reshape(part, tf.shape(token_ids)) for part in head(flat, embedding))

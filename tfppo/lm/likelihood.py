"""Negative log-likelihood of texts under a language model, and perplexity."""

import math

import numpy as np
import tensorflow as tf

from tfppo.data.packing import PackedSequences
from tfppo.models.language_model import LanguageModel
from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.logprobs import token_logprobs
from tfppo.ops.masking import masked_sum


@tf.function(jit_compile=True, autograph=False)
def _summed_loss(logits, targets, weights):
    # XLA fuses softmax, loss and gradient into one pass over the logits, the largest array of a step. The matrix
    # products around it are faster without XLA on CPUs.
    return masked_sum(-token_logprobs(logits, targets), weights)


_logprobs = tf.function(token_logprobs, jit_compile=True, autograph=False)


def negative_log_likelihood(
    model: LanguageModel,
    batch: PackedSequences,
    dropout_seed: tf.Tensor | None = None,
    arithmetic: Arithmetic | None = None,
) -> tf.Tensor:
    """Sum of weight times -log P(target) over a batch, in nats: a scalar.

    Args: arithmetic: what computes it; None: the model's own.
    """
    hidden = model.trunk.computed_by(arithmetic)(
        batch.inputs, segment_ids=batch.segment_ids, positions=batch.positions, dropout_seed=dropout_seed
    )
    if model.has_many_logits(hidden):
        return masked_sum(-model.of_logits(_logprobs, hidden, batch.targets, arithmetic=arithmetic), batch.weights)
    logits = model.logits(hidden, arithmetic)
    return _summed_loss(logits, batch.targets, batch.weights)


class HeldOutLoss:
    """The loss of a model on packed texts.

    Args: num_words: number of words in the texts, for the perplexity a word.
    """

    def __init__(self, model: LanguageModel, packed: PackedSequences, num_words: int, batch_size: int):
        self._packed, self._num_words, self._batch_size = packed, num_words, batch_size
        self._sum = tf.function(lambda batch: negative_log_likelihood(model, batch), autograph=False)

    def __call__(self) -> dict[str, float]:
        """Loss in nats a token, perplexity a token, and perplexity a word: exp(total loss / number of words)."""
        total, size = 0.0, self._batch_size
        for start in range(0, len(self._packed.inputs), size):
            part = PackedSequences(*(_pad_rows(array[start : start + size], size) for array in self._packed))
            total += float(self._sum(part))
        loss = total / float(self._packed.weights.sum())
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "word_perplexity": math.exp(min(total / self._num_words, 700.0)),
        }


def _pad_rows(array, size):
    """Pads a batch with rows of segment 0 and weight 0, as a batch of another size would be traced again."""
    return np.pad(array, [(0, size - len(array)), (0, 0)])

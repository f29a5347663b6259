"""Log-probabilities and values of given responses, under the reference and under the policy."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfppo.computation.engine import Engine
from tfppo.data.prompts import Prompts
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.lengths import LENGTH_PARTS, bucket_of
from tfppo.training.replicas import map_rows

_LENGTH_BUCKETS = 4  # lengths that parts are cut to: each one is compiled when it first comes up


class TeacherForcing:
    """Reads responses, all tokens at once, on all replicas.

    Args:
        temperature: of the sampling, which divides the logits.
        lengths_vary: whether responses may be shorter than R; the reference then is computed in parts of like length,
            unless each length costs a compilation.
    """

    def __init__(
        self,
        policy: Policy,
        ref_model: LanguageModel,
        engine: Engine,
        *,
        temperature: float,
        lengths_vary: bool,
        strategy: tf.distribute.Strategy,
    ):
        self._by_length = lengths_vary and not engine.fixed_shapes
        self._num_replicas = strategy.num_replicas_in_sync

        def logprobs_of(language_model, hidden, response_ids, response_mask):
            return engine.token_logprobs(language_model, hidden, response_ids, temperature) * response_mask

        def of_reference(*batch):
            return logprobs_of(ref_model, engine.response_states(ref_model.trunk, *batch), *batch[2:])

        def of_policy(*batch):
            hidden, values = policy.response_states(*batch, states_of=engine.response_states)
            return logprobs_of(policy.language_model, hidden, *batch[2:]), values

        def on_replicas(function):
            compiled = engine.function(function)
            return tf.function(lambda *rows: map_rows(strategy, compiled, *rows), autograph=False)

        self.of_policy = on_replicas(of_policy)
        self.of_reference = on_replicas(of_reference)

    def ref_logprobs(self, prompts: Prompts, response_ids: tf.Tensor, response_mask: tf.Tensor) -> tf.Tensor:
        """Log-probabilities [B, R] of responses under the reference, 0 at padding."""
        if not self._by_length:
            return self.of_reference(*prompts, response_ids, response_mask)
        share = response_ids.shape[0] // self._num_replicas
        return by_length(
            self.of_reference,
            prompts,
            responses=(response_ids, response_mask),
            num_parts=math.gcd(share, LENGTH_PARTS),
            buckets=_LENGTH_BUCKETS,
        )


def by_length(
    fn: Callable[..., tf.Tensor],
    rows: Sequence[tf.Tensor],
    *,
    responses: tuple[tf.Tensor, tf.Tensor],
    num_parts: int,
    buckets: int,
) -> tf.Tensor:
    """Applies fn to rows in parts of similar response length, each cut to its longest, so that little is padding.

    Args:
        fn: (*rows, response_ids, response_mask) -> [b, r], each row by itself.
        rows: tensors [B, ...]; responses: ids and mask, [B, R], the mask 1 up to a length; num_parts: divides B.
        buckets: how many different lengths responses are cut to.
    Returns: [B, R], with 0 where nothing was computed.
    """
    response_mask = responses[1]
    longest = response_mask.shape[1]
    lengths = np.maximum((np.asarray(response_mask) > 0).sum(axis=1), 1)
    order = np.argsort(lengths, kind="stable")
    parts = []
    for mine in np.split(order, num_parts):
        length = min(bucket_of(lengths[mine].max(), longest, buckets), longest)
        cut = [tf.gather(tensor, mine)[:, :length] for tensor in responses]
        parts.append(tf.pad(fn(*(tf.gather(tensor, mine) for tensor in rows), *cut), [[0, 0], [0, longest - length]]))
    return tf.gather(tf.concat(parts, axis=0), np.argsort(order, kind="stable"))

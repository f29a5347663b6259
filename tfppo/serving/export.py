"""SavedModel: the policy as a folder that TensorFlow loads without this package.

Signatures:
    generate (also serving_default)  prompt string [B] -> completion string [B], num_tokens int32 [B]
    generate_seeded                  the same with seed int64 [B]: equal prompt and seed, equal completion
    score                            prompt, response string [B] -> token_ids, mask, logprobs, values [B, R]

Tokenizer, KV-cached sampling and decoding are inside; all of it plain TensorFlow ops, with nothing for XLA to compile.
"""

import errno
from pathlib import Path

import tensorflow as tf

from tfppo.computation.graph import GraphEngine
from tfppo.config import SamplingConfig
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.files import sweep_work, sync, sync_tree, told, work_folder
from tfppo.models.policy import Policy
from tfppo.ops.logprobs import token_logprobs
from tfppo.ppo.drawing import draw_uniforms
from tfppo.ppo.sampling import sample

_WORK = "saving-"  # how the names of unfinished versions begin


class ServedPolicy(tf.Module):
    """A policy with its tokenizer: strings in, strings out.

    A prompt longer than the model has room for keeps its end: the tokens nearest to the completion.
    """

    def __init__(self, policy: Policy, tokenizer: Tokenizer, sampling: SamplingConfig):
        super().__init__(name="served_policy")
        self._policy = policy
        self._variables = [variable.value for variable in policy.variables]
        self._tokenizer = tokenizer.graph_tokenizer()
        self._eos_id, self._pad_id = tokenizer.eos_id, tokenizer.pad_id
        self._sampling = sampling
        self._engine = GraphEngine(policy.dtype_policy.name, compiled=False)
        positions = policy.language_model.max_sequence_length
        self._max_prompt = positions - sampling.response_length
        if self._max_prompt < 1:
            raise UserError(
                f"sampling.response_length is {sampling.response_length}; the model has {positions} positions, of "
                f"which a prompt needs at least one: choose at most {positions - 1}"
            )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="prompt")], autograph=False)
    def generate(self, prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        """Completions of prompts, random anew at every call."""
        length = self._sampling.response_length
        uniforms = tf.random.uniform([tf.size(prompt), length], maxval=1.0 - 2.0**-23)
        return self._complete(prompt, uniforms)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name="prompt"), tf.TensorSpec([None], tf.int64, name="seed")],
        autograph=False,
    )
    def generate_seeded(self, prompt: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        """Completions of prompts that depend on nothing but the prompt and its seed."""
        length = self._sampling.response_length
        uniforms = tf.map_fn(
            lambda one: draw_uniforms(tf.stack([one, 0]), 1, length)[0],
            seed,
            fn_output_signature=tf.TensorSpec([length], tf.float32),
        )
        return self._complete(prompt, uniforms)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, name="prompt"),
            tf.TensorSpec([None], tf.string, name="response"),
        ],
        autograph=False,
    )
    def score(self, prompt: tf.Tensor, response: tf.Tensor) -> dict[str, tf.Tensor]:
        """Log-probability and value of every token of a response, under the sampling temperature.

        Raises: InvalidArgumentError where a response is longer than the model has room for.
        """
        positions = self._policy.language_model.max_sequence_length
        response_ids = self._tokenizer.tokenize(response)
        longest = tf.cast(tf.reduce_max(response_ids.row_lengths(), axis=0), tf.int32)
        room = tf.debugging.assert_less(
            longest,
            positions,
            message=f"a response has too many tokens; prompt and response share {positions} positions",
        )
        with tf.control_dependencies([room]):
            longest = tf.maximum(longest, 1)
        mask = tf.sequence_mask(response_ids.row_lengths(), longest, tf.float32)
        ids = response_ids.to_tensor(self._pad_id, shape=[None, None])
        ids = tf.pad(ids, [[0, 0], [0, longest - tf.shape(ids)[1]]], constant_values=self._pad_id)
        prompt_ids, prompt_mask = self._encode_prompts(prompt, positions - longest)
        logits, values = self._policy.response_outputs(prompt_ids, prompt_mask, ids, mask)
        logprobs = token_logprobs(logits, ids, self._sampling.temperature or 1.0)
        return {
            "token_ids": ids,
            "mask": mask,
            "logprobs": logprobs * mask,
            "values": values * mask,
        }

    def _complete(self, prompt, uniforms):
        sampling = self._sampling
        # The sampler's buffers cannot be empty: an empty batch is sampled as one empty prompt, and cut off again.
        rows = tf.size(prompt)
        spare = tf.cast(rows == 0, tf.int32)
        prompt = tf.concat([prompt, tf.fill([spare], "")], axis=0)
        uniforms = tf.pad(uniforms, [[0, spare], [0, 0]])
        prompt_ids, prompt_mask = self._encode_prompts(prompt, self._max_prompt)
        samples = sample(
            self._policy,
            prompt_ids,
            prompt_mask,
            uniforms,
            engine=self._engine,
            stop_id=self._eos_id if sampling.stop_at_eos else None,
            pad_id=self._pad_id,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
        )
        return {
            "completion": self._tokenizer.detokenize(samples.response_ids, samples.response_mask)[:rows],
            "num_tokens": tf.cast(tf.reduce_sum(samples.response_mask, axis=1), tf.int32)[:rows],
        }

    def _encode_prompts(self, prompt, room):
        """The start token and the last `room` - 1 tokens of each prompt, padded on the left: ids and mask [B, P]."""
        ragged = self._tokenizer.tokenize(prompt)
        lengths = tf.cast(ragged.row_lengths(), tf.int32)[:, None]
        kept = tf.minimum(lengths, room - 1)
        width = tf.maximum(tf.reduce_max(kept), 0) + 1
        # Of each column, the index in the row's tokens; -1 before the kept ones is the start token's place.
        columns = lengths - width + tf.range(width)
        before_kept = columns - (lengths - kept)
        right_padded = tf.pad(ragged.to_tensor(self._pad_id), [[0, 0], [0, 1]])
        tokens = tf.gather(right_padded, tf.maximum(columns, 0), batch_dims=1)
        ids = tf.where(before_kept == -1, self._eos_id, tf.where(before_kept < 0, self._pad_id, tokens))
        return ids, tf.cast(before_kept >= -1, tf.int32)


def export_policy(policy: Policy, tokenizer: Tokenizer, sampling: SamplingConfig, base: Path | str) -> Path:
    """Writes the next version, `base`/1, 2, ..., whole or not at all; returns its folder.

    Of processes that export at the same time each gets a version of its own. Raises: UserError where it cannot be
    written.
    """
    base = Path(base)
    served = ServedPolicy(policy, tokenizer, sampling)
    signatures = {
        "serving_default": served.generate,
        "generate": served.generate,
        "generate_seeded": served.generate_seeded,
        "score": served.score,
    }
    with told(f"the SavedModel in {str(base)!r}", "earlier versions are intact", others=(tf.errors.OpError,)):
        base.mkdir(parents=True, exist_ok=True)
        sweep_work(base, _WORK)
        # TensorFlow Serving polls for numbered folders: it must never see half of one.
        with work_folder(base, _WORK) as folder:
            fresh = folder / "model"
            tf.saved_model.save(served, str(fresh), signatures=signatures)
            sync_tree(fresh)
            final = _take_next_version(fresh, base)
        sync(base)
    return final


def _take_next_version(fresh, base):
    """Gives a folder the next free number. A rename never replaces a folder that has something in it."""
    while True:
        versions = [int(path.name) for path in base.iterdir() if path.name.isdigit()]
        try:
            return fresh.rename(base / str(max(versions, default=0) + 1))
        except OSError as error:  # another process was faster
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

"""How fast the phases of an iteration are, next to what the machine itself can do.

The model has random weights of a given size and the prompts are random tokens: neither changes the speed.
"""

import dataclasses
import math
import resource
import statistics
import time

import numpy as np
import tensorflow as tf

from tfppo.config import Config
from tfppo.costs import decode_bytes, decode_flops, forward_flops, prefill_flops, update_flops
from tfppo.distribute import make_strategy
from tfppo.learner import Learner
from tfppo.models.folder import copy_language_model
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.native.building import resolve_computation
from tfppo.rewards.loading import load_reward
from tfppo.rewards.scoring import TextReward
from tfppo.rollout import RolloutCollector
from tfppo.seeds import seed_for
from tfppo.targets import prepare_targets
from tfppo.text.tokenizer import Tokenizer
from tfppo.types import Prompts


@dataclasses.dataclass
class Timing:
    """Seconds of one phase: of its first call, which traces and compiles, and the median of the later ones."""

    first: float
    seconds: float


def timed(function, runs) -> Timing:
    """Times `function`, which must have finished its work when it returns."""
    seconds = []
    for _ in range(1 + runs):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return Timing(seconds[0], statistics.median(seconds[1:]))


def measure_ceilings(runs=5):
    """The largest rates that TensorFlow reaches: products of 2048 x 2048 matrices in GFLOP/s, copies in GB/s."""
    size, megabytes = 2048, 256

    def best(function, *arguments):
        compiled = tf.function(function)
        return min(timed(lambda: compiled(*arguments)[0, 0].numpy(), 1).seconds for _ in range(runs))

    def product_gflops(dtype):
        matrix = tf.cast(tf.random.stateless_normal([size, size], [0, 0]), dtype)
        return 2 * size**3 / best(tf.matmul, matrix, matrix) / 1e9

    block = tf.ones([megabytes, 2**18])
    copy_gb = 2 * megabytes * 2**20 / 1e9  # read and written
    return {
        "float32_gflops": product_gflops(tf.float32),
        "bfloat16_gflops": product_gflops(tf.bfloat16),
        "copy_gb_per_second": copy_gb / best(lambda x: -x, block),
    }


def make_tokenizer(vocabulary_size):
    """A tokenizer of exactly that many tokens, made of letters: all pairs, then all triples and so on."""
    letters = [bytes([byte]) for byte in b" abcdefghijklmnopqrstuvwxyz"]
    merges, longest = [], letters
    room = vocabulary_size - Tokenizer([]).vocabulary_size
    while len(merges) < room:
        pairs = [(left, letter) for left in longest for letter in letters][: room - len(merges)]
        merges += pairs
        longest = [left + letter for left, letter in pairs]
    return Tokenizer(merges)


def stop_at_random(model, stop_id, probability):
    """Makes a language model give its stop token the same probability in every state: lengths become geometric."""
    trunk = model.trunk
    embedding = trunk.token_embedding.numpy()
    embedding[stop_id] = 0.0
    direction = np.zeros(embedding.shape[1], np.float32)
    direction[0] = 1.0
    others = np.exp(np.delete(embedding @ direction, [stop_id, model.pad_id]).astype(np.float64)).sum()
    embedding[stop_id, 0] = math.log(probability / (1.0 - probability) * others)
    trunk.token_embedding.assign(embedding)
    trunk.final_norm.gamma.assign(tf.zeros_like(direction))
    trunk.final_norm.beta.assign(direction)


class Benchmark:
    """One iteration of PPO at given sizes, whose phases can be timed one by one.

    Args:
        config: of which model, sampling and ppo count; ppo.rollout_batch_size is the batch.
        prompt_length: tokens of every prompt.
        mean_length: of the responses, which then stop at random; None: all have full length.
        use_strategy: False leaves MirroredStrategy out.
    """

    def __init__(self, config: Config, prompt_length, mean_length=None, use_strategy=True):
        self.config, self.prompt_length = config, prompt_length
        ppo, batch = config.ppo, config.ppo.rollout_batch_size
        strategy = make_strategy(config.num_replicas) if use_strategy else tf.distribute.get_strategy()
        tokenizer = make_tokenizer(config.model.vocabulary_size)
        with strategy.scope():
            reference = LanguageModel(**dataclasses.asdict(config.model), pad_id=tokenizer.pad_id, dtype=ppo.dtype)
            if mean_length:
                stop_at_random(reference, tokenizer.eos_id, 1.0 / mean_length)
            actor = copy_language_model(reference, ppo.dtype)
            policy = Policy(actor, ppo.critic == "separate", ppo.value_head == "mlp")
        self.computation = resolve_computation(ppo, config.sampling, config.model.hidden_dim)
        reward = TextReward("sentiment", load_reward(config.reward.functions[0]))
        self.collector = RolloutCollector(
            policy,
            reference,
            config.sampling,
            config.reward,
            tokenizer=tokenizer,
            rewards=[reward],
            strategy=strategy,
            dtype=self.computation.rollout_dtype,
            native=self.computation.native,
        )
        self.learner = Learner(
            policy,
            ppo,
            config.reward,
            strategy,
            dtype=self.computation.update_dtype,
            lengths_vary=config.sampling.stop_at_eos,
            native=self.computation.native,
        )
        ids = np.random.default_rng(0).integers(300, config.model.vocabulary_size, [batch, prompt_length])
        self.prompts = Prompts(tf.constant(ids, tf.int32), tf.ones([batch, prompt_length], tf.int32))
        self._advantages = tf.function(lambda rollout: prepare_targets(rollout, ppo, config.reward, 0.05)[0])
        self._number = 0

    def sample(self):
        """A new batch of responses."""
        self._number += 1
        samples = self.collector.sampler(self.prompts, seed_for(0, "sample", self._number))
        samples.response_ids.numpy()
        return samples

    def collect(self):
        """A new rollout: sampled, scored, looked up in the reference."""
        self._number += 1
        return self.collector.collect(self.prompts, seed_for(0, "sample", self._number)).rollout

    def update(self, rollout):
        """All epochs over a rollout."""
        coefs = tf.constant(0.05), tf.constant(1.0)
        return float(self.learner.update(rollout, seed_for(0, "shuffle", self._number), *coefs)["loss/total"])

    def measure(self, runs):
        """Times every phase, and the whole. Returns: {phase: Timing}, mean response length."""
        prompts, timings = self.prompts, {"sampling": timed(self.sample, runs)}
        samples = self.sample()
        response = samples.response_ids, samples.response_mask
        timings["reward"] = timed(lambda: self.collector.score(prompts, samples), runs)
        timings["reference"] = timed(lambda: self.collector.reference_of(prompts, *response).numpy(), runs)
        rollout = self.collect()
        timings["advantages"] = timed(lambda: self._advantages(rollout).advantages.numpy(), runs)
        timings["update"] = timed(lambda: self.update(rollout), runs)
        timings["iteration"] = timed(lambda: self.update(self.collect()), runs)
        return timings, float(tf.reduce_mean(tf.reduce_sum(samples.response_mask, axis=1)))


def peak_memory_gb():
    """The most memory that this process ever held, in GB of 1e9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def shares_of_ceiling(benchmark: Benchmark, timings, ceilings):
    """Of each phase, the time that its products and bytes need at the machine's own rates, over the time it took.

    Decoding needs the larger of two times: reading weights and cache at the copy rate, or its products at the peak.
    Only for responses of full length.
    """
    config, prompt_length = benchmark.config, benchmark.prompt_length
    model, rows, length = config.model, config.ppo.rollout_batch_size, config.sampling.response_length
    flops = {dtype: ceilings[f"{dtype.removeprefix('mixed_')}_gflops"] * 1e9 for dtype in ("float32", "mixed_bfloat16")}
    sampling_flops, bandwidth = flops[benchmark.computation.rollout_dtype], ceilings["copy_gb_per_second"] * 1e9
    weight_bytes = 4 if benchmark.computation.rollout_dtype == "float32" else 2
    decoding = sum(
        max(
            decode_bytes(model, rows=rows, context=context, bytes_per_weight=weight_bytes) / bandwidth,
            decode_flops(model, rows=rows, context=context) / sampling_flops,
        )
        for context in range(prompt_length + 1, prompt_length + length)
    )
    reading = prefill_flops(model, rows=rows, prompt_length=prompt_length) / sampling_flops
    scoring = forward_flops(model, rows=rows, length=prompt_length + length - 1, states=length)
    learning = config.ppo.ppo_epochs * update_flops(
        model,
        rows=rows,
        prompt_length=prompt_length,
        response_length=length,
        separate_critic=config.ppo.critic == "separate",
    )
    needed = {
        "sampling": reading + decoding,
        "reference": scoring / sampling_flops,
        "update": learning / flops[benchmark.computation.update_dtype],
    }
    return {phase: seconds / timings[phase].seconds for phase, seconds in needed.items()}

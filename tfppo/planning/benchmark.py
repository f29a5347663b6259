"""How fast the phases of an iteration are, compared with the peak rates of the machine.

The model has random weights of a given size and the prompts are random tokens: neither changes the speed.
"""

import dataclasses
import itertools
import math
import operator
import resource
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from tfppo.computation.choice import choose_computation
from tfppo.computation.modes import seconds_of
from tfppo.config import Config
from tfppo.data.prompts import Prompts
from tfppo.data.tokenizer import Tokenizer
from tfppo.models.folder import copy_language_model
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.seeds import seed_for
from tfppo.planning.costs import decode_bytes, decode_flops, forward_flops, prefill_flops, update_flops
from tfppo.ppo.assembly import assemble
from tfppo.ppo.targets import prepare_targets
from tfppo.ppo.types import Rollout, Samples
from tfppo.rewards.loading import load_reward
from tfppo.rewards.scoring import TextReward
from tfppo.training.replicas import make_strategy


@dataclasses.dataclass
class Timing:
    """Seconds of one phase: of its first call, which traces and compiles, and the median of the later ones."""

    first: float
    seconds: float


def timed(function: Callable, runs: int) -> Timing:
    """Times one call of `function`, and then as many as there are runs."""
    first, *others = (seconds_of(function) for _ in range(1 + runs))
    return Timing(first, statistics.median(others))


class Ceilings:
    """The largest rates that TensorFlow reaches: products of 2048 x 2048 matrices in GFLOP/s, copies in GB/s."""

    def __init__(self, size: int = 2048, megabytes: int = 256):
        matrix = tf.random.stateless_normal([size, size], [0, 0])
        product = tf.function(tf.matmul, autograph=False)
        copy = tf.function(lambda x: -x, autograph=False)
        flop, copied = 2 * size**3 / 1e9, 2 * megabytes * 2**20 / 1e9  # a copy is read and written
        self._tasks = {
            "float32_gflops": (product, [matrix] * 2, flop),
            "bfloat16_gflops": (product, [tf.cast(matrix, tf.bfloat16)] * 2, flop),
            "copy_gb_per_second": (copy, [tf.ones([megabytes, 2**18])], copied),
        }
        self.measure()  # traces

    def measure(self, runs: int = 3) -> dict[str, float]:
        """The rates at this moment, of the fastest of a few runs."""

        def seconds(function, arguments):
            return min(seconds_of(lambda: function(*arguments)[0, 0].numpy()) for _ in range(runs))

        return {name: amount / seconds(*task) for name, (*task, amount) in self._tasks.items()}


def make_tokenizer(vocabulary_size: int) -> Tokenizer:
    """A tokenizer of exactly that many tokens, made of letters: all pairs, then all triples and so on."""
    letters = [bytes([byte]) for byte in b" abcdefghijklmnopqrstuvwxyz"]
    merges: list[tuple[bytes, bytes]] = []
    longest = letters
    room = vocabulary_size - Tokenizer([]).vocabulary_size
    while len(merges) < room:
        pairs = [(left, letter) for left in longest for letter in letters][: room - len(merges)]
        merges += pairs
        longest = [left + letter for left, letter in pairs]
    return Tokenizer(merges)


def stop_at_random(model: LanguageModel, stop_id: int, probability: float) -> None:
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

    def __init__(self, config: Config, prompt_length: int, mean_length: float | None = None, use_strategy: bool = True):
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
        self.computation = choose_computation(
            ppo, config.sampling, width=config.model.hidden_dim, architecture=reference.trunk.architecture
        )
        reward = TextReward("sentiment", load_reward(config.reward.functions[0]))
        self.collector, self.learner = assemble(
            policy,
            reference,
            ppo=ppo,
            sampling=config.sampling,
            reward=config.reward,
            computation=self.computation,
            tokenizer=tokenizer,
            rewards=[reward],
            strategy=strategy,
        )
        ids = np.random.default_rng(0).integers(300, config.model.vocabulary_size, [batch, prompt_length])
        self.prompts = Prompts(tf.constant(ids, tf.int32), tf.ones([batch, prompt_length], tf.int32))
        self._advantages = tf.function(
            lambda rollout: prepare_targets(rollout, ppo, config.reward, 0.05)[0], autograph=False
        )
        self._number = 0
        self._samples: Samples  # of the last call of `sampling`
        self._rollout: Rollout  # of the last call of `iteration`, or of `measure`

    def measure(self, runs: int) -> tuple[dict[str, Timing], float]:
        """Times every phase, and the whole. Returns: {phase: Timing}, mean response length."""
        timings = {phase: timed(getattr(self, phase), runs) for phase in ("sampling", "reward", "reference")}
        length = float(tf.reduce_mean(tf.reduce_sum(self._samples.response_mask, axis=1)))
        self._collect()
        timings |= {phase: timed(getattr(self, phase), runs) for phase in ("advantages", "update", "iteration")}
        return timings, length

    def sampling(self) -> None:
        """A new batch of responses."""
        self._samples = self.collector.sampler(self.prompts, self._next_seed())
        self._samples.response_ids.numpy()

    def reward(self) -> None:
        """The scores of the last batch."""
        self.collector.score(self.prompts, self._samples)

    def reference(self) -> None:
        """Log-probabilities of the last batch under the reference."""
        responses = self._samples.response_ids, self._samples.response_mask
        self.collector.teacher_forcing.ref_logprobs(self.prompts, *responses).numpy()

    def advantages(self) -> None:
        """The advantages of the last rollout."""
        self._advantages(self._rollout).advantages.numpy()

    def update(self) -> None:
        """All epochs over the last rollout."""
        coefs = tf.constant(0.05), tf.constant(1.0)
        float(self.learner.update(self._rollout, seed_for(0, "shuffle", self._number), *coefs)["loss/total"])

    def iteration(self) -> None:
        """A new rollout (sampled, scored, looked up in the reference), and all epochs over it."""
        self._collect()
        self.update()

    def _collect(self):
        self._rollout = self.collector.collect(self.prompts, self._next_seed()).rollout

    def _next_seed(self):
        self._number += 1
        return seed_for(0, "sample", self._number)


def peak_memory_gb() -> float:
    """The most memory that this process ever held, in GB of 1e9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def shares_of_ceilings(benchmark: Benchmark, runs: int) -> tuple[dict[str, float], dict[str, float]]:
    """The time that each phase needs at the machine's own rates, over the time that it takes.

    A shared machine changes its speed from one minute to the next: the rates are measured before and after every run,
    and the larger ones count. Only after `measure`, and for responses of full length.

    Returns: {phase: median share}, {rate: median}.
    """
    ceilings = Ceilings()
    measured, shares = [], {}
    for phase in ("sampling", "reference", "update"):
        rates, seconds = [ceilings.measure()], []
        for _ in range(runs):
            seconds.append(seconds_of(getattr(benchmark, phase)))
            rates.append(ceilings.measure())
        needed = [seconds_needed(benchmark, larger)[phase] for larger in larger_of_neighbours(rates)]
        shares[phase] = statistics.median(map(operator.truediv, needed, seconds))
        measured += rates
    return shares, {name: statistics.median(rates[name] for rates in measured) for name in measured[0]}


def larger_of_neighbours(rates: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """The larger rates of each two neighbours, from {name: rate} at successive moments."""
    return [{name: max(before[name], after[name]) for name in before} for before, after in itertools.pairwise(rates)]


def seconds_needed(benchmark: Benchmark, ceilings: Mapping[str, float]) -> dict[str, float]:
    """The seconds that the products and bytes of each phase need at the machine's own rates.

    Decoding needs the larger of two times: reading weights and cache at the copy rate, or its products at the peak.
    """
    config, prompt_length = benchmark.config, benchmark.prompt_length
    model, rows, length = config.model, config.ppo.rollout_batch_size, config.sampling.response_length
    flops = {dtype: ceilings[f"{dtype.removeprefix('mixed_')}_gflops"] * 1e9 for dtype in ("float32", "mixed_bfloat16")}
    rollout_dtype, update_dtype = (
        part.engine.dtype for part in (benchmark.computation.sampling, benchmark.computation.update)
    )
    sampling_flops, bandwidth = flops[rollout_dtype], ceilings["copy_gb_per_second"] * 1e9
    weight_bytes = 4 if rollout_dtype == "float32" else 2
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
    return {
        "sampling": reading + decoding,
        "reference": scoring / sampling_flops,
        "update": learning / flops[update_dtype],
    }

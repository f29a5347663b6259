"""How fast the phases of an iteration are, compared with the peak rates of the machine.

The model has random weights of a given size and the prompts are random tokens: neither changes the speed.
"""

import dataclasses
import math
import operator
import resource
import statistics
from collections.abc import Callable, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from tfppo.computation.choice import choose_computation
from tfppo.computation.devices import round_products
from tfppo.computation.memory import device_peak_gb, memory_ran_out, restart_device_peak
from tfppo.computation.modes import seconds_of
from tfppo.config import Config
from tfppo.data.prompts import Prompts
from tfppo.data.tokenizer import Tokenizer
from tfppo.models.folder import copy_language_model
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.seeds import seed_for
from tfppo.planning.ceilings import Ceilings, larger_of_neighbours
from tfppo.planning.findings import Clock, Findings, Timing
from tfppo.planning.work import Work
from tfppo.ppo.assembly import assemble
from tfppo.ppo.targets import prepare_targets
from tfppo.ppo.types import Rollout, Samples
from tfppo.rewards.loading import load_reward
from tfppo.rewards.scoring import TextReward
from tfppo.training.replicas import make_strategy

_SHARED = ("sampling", "reference", "update")  # whose work is counted
_PART = 1 / 4  # of the time left that the later calls of one phase may take


def timed(function: Callable, runs: int, clock: Clock | None = None) -> Timing:
    """Times one call of `function`, and then as many as there are runs, or at least one and what the clock has."""
    clock = clock or Clock()
    restart_device_peak()
    first = seconds_of(function)
    later = Clock(clock.left() * _PART)
    others = [seconds_of(function)]
    while len(others) < runs and later.left() > others[-1]:
        others.append(seconds_of(function))
    return Timing(first, statistics.median(others), len(others), device_peak_gb())


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
        round_products(tensorfloat32=config.tensorfloat32)
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
        engines = (part.engine.dtype for part in (self.computation.sampling, self.computation.update))
        self.work = Work(config, prompt_length, *engines)
        self._number = 0
        self._samples = self._samples_at_random()  # until `sampling`, those of its last call
        self._rollout: Rollout  # of the last call of `iteration`, or of `prepare_update`

    def mean_length(self) -> float:
        """Tokens of a response of the last samples, on average."""
        return float(tf.reduce_mean(tf.reduce_sum(self._samples.response_mask, axis=1)))

    def sampled_by(self) -> str | None:
        """The name of the engine that samples; None where that is not known before the first batch."""
        engine = self.collector.sampler.engine
        return engine.name if engine else None

    def prepare_update(self, samples: bool) -> None:
        """A rollout for `advantages` and `update`.

        Args: samples: whether it is drawn, as in an iteration; else it is of the last responses, and nothing is
            compiled that draws.
        """
        if samples:
            self._collect()
        else:
            responses = self._samples.response_ids, self._samples.response_mask
            self._rollout = self.collector.replay(self.prompts, *responses).rollout

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

    def _samples_at_random(self):
        """Responses of full length that no model has drawn."""
        model, size = self.config.model, [len(self.prompts.prompt_ids), self.config.sampling.response_length]
        ids = np.random.default_rng(1).integers(300, model.vocabulary_size, size)
        zeros, ones = tf.zeros(size), tf.ones(size)
        return Samples(tf.constant(ids, tf.int32), ones, zeros, zeros, tf.zeros(size[:1], tf.bool))

    def _next_seed(self):
        self._number += 1
        return seed_for(0, "sample", self._number)


def measure(
    make: Callable[[], Benchmark],
    findings: Findings,
    *,
    phases: Sequence[str],
    runs: int,
    clock: Clock,
    shares: bool,
) -> None:
    """Times phases, and takes the machine's rates; a phase that finds too little memory is left out.

    Args:
        make: makes the benchmark.
        findings: what is found is put there.
        phases: of PHASES; what one of them needs besides is done untimed.
        runs: timed calls of each phase, fewer where the clock has less.
        shares: whether to time phases once more between measurements of the rates; only for responses of full length.
    """
    benchmark = make()  # before anything computes: devices are divided into replicas there
    findings.work = benchmark.work
    limited = clock.left() < math.inf
    if limited:  # so that what is found before the end can be compared
        findings.now = "the ceilings"
        findings.ceilings = Ceilings().measure()
    prepared = False
    for phase in phases:
        findings.now = phase
        with _left_out_without_memory(findings, phase):
            if phase in ("advantages", "update") and not prepared:
                benchmark.prepare_update("sampling" in phases)
                prepared = True
            findings.timings[phase] = timed(getattr(benchmark, phase), runs, clock)
        findings.length, findings.sampled_by = benchmark.mean_length(), benchmark.sampled_by()
    findings.now = "the shares"
    if not limited:  # the matrices of the ceilings are not the iteration's
        findings.peak_memory_gb = peak_memory_gb()
    known = [phase for phase in _SHARED if phase in findings.timings]
    if shares and known:
        with _left_out_without_memory(findings, "shares"):
            findings.shares, findings.ceilings = shares_of_ceilings(benchmark, runs, known, clock)
    elif not limited:
        findings.ceilings = Ceilings().measure()


@contextmanager
def _left_out_without_memory(findings, what):
    try:
        yield
    except tf.errors.OpError as error:
        if not memory_ran_out(error):
            raise
        findings.left_out[what] = "memory ran out"


def peak_memory_gb() -> float:
    """The most memory that this process ever held, in GB of 1e9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def shares_of_ceilings(
    benchmark: Benchmark, runs: int, phases: Sequence[str], clock: Clock
) -> tuple[dict[str, float], dict[str, float]]:
    """The time that each phase needs at the machine's own rates, over the time that it takes.

    A shared machine changes its speed from one minute to the next: the rates are measured before and after every run,
    and the larger ones count. Only of phases that have run, and for responses of full length.

    Returns: {phase: median share}, {rate: median}; fewer phases where the clock has too little for them.
    """
    ceilings = Ceilings()
    measured, shares = [ceilings.measure()], {}
    for phase in phases:
        rates, seconds = [measured[-1]], list[float]()
        later = Clock(clock.left() * _PART)
        while len(seconds) < runs and later.left() > (seconds[-1] if seconds else 0.0):
            seconds.append(seconds_of(getattr(benchmark, phase)))
            rates.append(ceilings.measure())
        if seconds:
            needed = [benchmark.work.seconds_needed(larger)[phase] for larger in larger_of_neighbours(rates)]
            shares[phase] = statistics.median(map(operator.truediv, needed, seconds))
        measured += rates[1:]
    return shares, {name: statistics.median(rates[name] for rates in measured) for name in measured[0]}

"""The outer loop of PPO at toy size: what it adapts, averages, saves, ends at, and says."""

import functools
import json
import os
import shutil
import signal
from dataclasses import asdict

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import build_collector, build_learner
from config_cases import ORIGINAL

from tfppo.computation import modes
from tfppo.computation.computation import EXACT_TOLERANCE
from tfppo.config import Config, DataConfig, EvaluationConfig, PpoConfig, RewardConfig, SamplingConfig
from tfppo.data.prompts import PromptSet, Trajectory
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.folder import copy_language_model, copy_policy
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.seeds import seed_for
from tfppo.ppo.trainer import PpoTrainer
from tfppo.rewards.scoring import TextReward
from tfppo.rewards.shaping import ScoreShaper
from tfppo.stages import ppo as ppo_stage
from tfppo.training.interrupt import Interrupted
from tfppo.training.replicas import make_strategy

EOS, BATCH, RESPONSE, ITERATIONS = 1, 8, 4, 4


def byte_mean(prompts, responses):
    return [sum(response.encode()) / 40 for response in responses]


class RecordingTrainer(PpoTrainer):
    """Keeps the policy's weights of every iteration, as they are when the average moves."""

    def average(self):
        super().average()
        self.history = [*getattr(self, "history", []), self.learner.policy.get_weights()]


# What the trainer alone reads of PpoConfig: learners that differ in nothing else are one.
OF_THE_TRAINER = {
    "total_episodes",
    "target_score",
    "trajectories",
    "kl_coef",
    "adaptive_kl_target",
    "adaptive_kl_horizon",
    "warmup_iterations",
    "schedule_floor",
    "critic_warmup_iterations",
    "ema_decay",
}


class Parts:
    """The models of trainers, and their collectors and learners: each traced once for all that have its settings."""

    def __init__(self):
        self.strategy = make_strategy(1)
        self.collectors, self.learners = {}, {}
        keras.utils.set_random_seed(0)
        rng = np.random.default_rng(0)
        with self.strategy.scope():
            self.ref_model = LanguageModel(40, 1, 2, 8, 16, 8)
            self.ref_model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in self.ref_model.get_weights()])
            self.policy, self.average = (Policy(copy_language_model(self.ref_model, "float32")) for _ in range(2))
        self.start = self.policy.get_weights()

    def put_back(self):
        """The models as they were at first."""
        for model in (self.policy, self.average):
            model.set_weights(self.start)

    def collector(self, config, function):
        """A collector that has scored nothing yet, nor measured what samples faster."""
        key = repr((config.sampling, config.reward))
        if key not in self.collectors:
            collector = build_collector(
                self.policy,
                self.ref_model,
                config.sampling,
                config.reward,
                tokenizer=Tokenizer([]),
                rewards=[],
                strategy=self.strategy,
            )
            self.collectors[key] = collector, collector.sampler.engine
        collector, collector.sampler.engine = self.collectors[key]
        collector.rewards, collector.shaper = [TextReward("toy", function)], ScoreShaper(config.reward)
        return collector

    def learner(self, config):
        """A learner that has made no step yet."""
        settings = {name: value for name, value in asdict(config.ppo).items() if name not in OF_THE_TRAINER}
        key = repr((settings, config.reward))
        if key not in self.learners:
            learner = build_learner(self.policy, config.ppo, config.reward, self.strategy)
            self.learners[key] = learner, [variable.numpy() for variable in learner.optimizer.variables]
        learner, start = self.learners[key]
        for variable, value in zip(learner.optimizer.variables, start, strict=True):
            variable.assign(value)
        return learner


@functools.cache
def shared_parts():
    """What trainers are made of that come one after the other: the next one takes it from the one before."""
    return Parts()


def make_trainer(
    folder, function=byte_mean, reward=None, sampling=None, ema=False, evaluation=None, parts=None, **changes
):
    """A trainer of the same weights each time. Args: parts: None: those of the trainer before, which is at its end."""
    defaults = ORIGINAL | dict(
        rollout_batch_size=BATCH,
        total_episodes=BATCH * ITERATIONS,
        ppo_epochs=1,
        num_minibatches=2,
        learning_rate=1e-2,
        jit_compile=False,
    )
    config = Config(
        data=DataConfig(min_prompt_tokens=1, max_prompt_tokens=3),
        sampling=SamplingConfig(**{"response_length": RESPONSE, "jit_compile": False, **(sampling or {})}),
        reward=RewardConfig(**(reward or {})),
        ppo=PpoConfig(**{**defaults, **changes}),
        evaluation=EvaluationConfig(**(evaluation or {})),
        checkpoint_every=2,
    ).validate()
    parts = parts or shared_parts()
    parts.put_back()
    trajectories = [
        Trajectory([EOS, 2 + n, 3 + n], [*range(4 + n, 4 + n + n % 5), EOS], {"number": n}) for n in range(12)
    ]
    prompts = PromptSet(trajectories, 0, 4, seed=0)
    held_out = PromptSet([Trajectory([EOS, 20 + n], [EOS]) for n in range(12)], 0, 4, seed=0)
    return RecordingTrainer(
        config,
        parts.collector(config, function),
        parts.learner(config),
        prompts,
        folder,
        ratio_tolerance=config.ppo.ratio_tolerance or EXACT_TOLERANCE,
        ema=parts.average if ema else None,
        held_out_prompts=held_out if evaluation else None,
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "ppo.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four iterations with everything that has state: trainer, its first weights, scores, folder, calls."""
    folder, scores = tmp_path_factory.mktemp("run"), []

    def recorded(prompts, responses):
        scores.append(byte_mean(prompts, responses))
        return scores[-1]

    settings = dict(
        reward=dict(normalize=True),
        kl_coef=0.05,
        adaptive_kl_target=0.01,
        adaptive_kl_horizon=100,
        critic_warmup_iterations=1,
        warmup_iterations=1,
        schedule_floor=0.5,
        ema_decay=0.75,
        ema=True,
    )
    trainer = make_trainer(folder, recorded, parts=Parts(), **settings)  # it stays what it is
    start = trainer.learner.policy.get_weights()
    trainer.train()
    return trainer, start, np.array(scores), folder, functools.partial(make_trainer, folder, recorded, **settings)


def test_nothing_is_traced_after_the_first_iteration(finished):
    learner, collector = finished[0].learner, finished[0].collector
    sampler = collector.sampler
    for function in (learner.update, sampler.functions[sampler.engine.name], collector.teacher_forcing.of_reference):
        assert function.experimental_get_tracing_count() == 1
    assert list(sampler.functions) == [sampler.engine.name]  # no other one could be traced


def untimed(rows):
    return [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in rows]


def test_evaluation_in_between_changes_no_bit_and_compiles_nothing(tmp_path):
    settings = dict(reward=dict(normalize=True), adaptive_kl_target=0.01, sampling=dict(stop_at_eos=True))
    plain = make_trainer(tmp_path / "plain", **settings)
    plain.train()
    evaluated = make_trainer(tmp_path / "evaluated", evaluation=dict(every=3, num_prompts_in_training=12), **settings)
    evaluated.train()
    for weights, others in zip(plain.history, evaluated.history, strict=True):
        for weight, other in zip(weights, others, strict=True):
            np.testing.assert_array_equal(weight, other)
    assert untimed(rows(tmp_path / "plain")) == untimed(rows(tmp_path / "evaluated"))
    figures = [json.loads(line) for line in (tmp_path / "evaluated" / "ppo_evaluation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in figures] == [0, 3, ITERATIONS]
    assert figures[0]["evaluation/kl"] == pytest.approx(0.0, abs=1e-5) and figures[-1]["evaluation/kl"] > 1e-3
    sampler = evaluated.collector.sampler
    assert sampler.functions[sampler.engine.name].experimental_get_tracing_count() == 1
    assert not (tmp_path / "plain" / "ppo_evaluation.jsonl").exists()


def test_the_average_follows_its_recursion(finished):
    trainer, expected, *_ = finished
    assert len(trainer.history) == ITERATIONS
    for weights in trainer.history:
        expected = [0.75 * mean + 0.25 * weight for mean, weight in zip(expected, weights, strict=True)]
    for mean, weight, last in zip(trainer.ema.get_weights(), expected, trainer.history[-1], strict=True):
        np.testing.assert_allclose(mean, weight, rtol=1e-5, atol=1e-6)
        assert np.abs(mean - last).max() > 1e-4


def test_the_critic_alone_learns_in_the_first_iteration(finished):
    trainer, start, *_ = finished
    variables = trainer.learner.policy.variables
    for variable, before, first, second in zip(variables, start, *trainer.history[:2], strict=True):
        own = variable.name.startswith("value")
        assert (np.abs(first - before).max() > 1e-4) if own else np.array_equal(first, before), variable.path
        assert np.abs(second - first).max() > 1e-5, variable.path


def test_the_kl_coefficient_follows_the_kl(finished):
    """From row to row, and from the last row to what is saved."""
    trainer, folder = finished[0], finished[3]
    coefficient = 0.05
    for row in rows(folder):
        np.testing.assert_allclose(row["objective/kl_coef"], coefficient, rtol=1e-6)
        error = min(max(row["objective/kl"] / 0.01 - 1, -0.2), 0.2)
        coefficient *= 1 + error * BATCH / 100
    assert len({row["objective/kl_coef"] for row in rows(folder)}) == ITERATIONS
    np.testing.assert_allclose(trainer.keeper.scalars["kl_coef"], coefficient, rtol=1e-6)


def test_the_learning_rate_follows_the_schedule(finished):
    # Warmup of one update to .01; then linear from .01 towards .005 over three.
    expected = [0.01, 0.01, 0.01 * (1 - 0.5 / 3), 0.01 * (1 - 1 / 3)]
    np.testing.assert_allclose([row["policy/learning_rate"] for row in rows(finished[3])], expected, rtol=1e-6)
    np.testing.assert_allclose(finished[0].learner.optimizer.learning_rate.numpy(), expected[-1], rtol=1e-6)


def test_scores_are_reported_raw_and_their_moments_kept(finished):
    trainer, _, scores, folder, _ = finished
    assert scores.shape == (ITERATIONS, BATCH)
    for row, raw in zip(rows(folder), scores, strict=True):
        np.testing.assert_allclose([row["objective/score"], row["reward/toy"]], [raw.mean()] * 2, rtol=1e-5)
    moments = {"score_count": scores.size, "score_mean": scores.mean(), "score_variance": scores.var()}
    for name, value in moments.items():
        np.testing.assert_allclose(trainer.keeper.scalars[name], value, rtol=1e-5, err_msg=name)


def test_a_finished_run_comes_back_and_does_not_go_on(finished):
    trainer, _, scores, folder, again = finished
    before, record = len(scores), (folder / "ppo.jsonl").read_bytes()
    other = again()
    done, kl_coef, is_finished = other.restored()
    assert (done, is_finished) == (ITERATIONS, True) and kl_coef == trainer.keeper.scalars["kl_coef"]
    assert other.collector.state == trainer.collector.state
    for model, expected in ((other.learner.policy, trainer.learner.policy), (other.ema, trainer.ema)):
        for weight, saved in zip(model.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_array_equal(weight, saved)
    other.train()
    assert len(scores) == before and (folder / "ppo.jsonl").read_bytes() == record


def test_the_end_moves_with_the_settings(finished):
    """The run has ended after 4 iterations; its last score is the one to reach, or was."""
    folder, again = finished[3], finished[4]
    score = rows(folder)[-1]["objective/score"]
    for settings, ended in (
        (dict(total_episodes=BATCH * 6), False),
        (dict(total_episodes=BATCH * 2), True),
        (dict(total_episodes=BATCH * 6, target_score=score - 0.01), True),
        (dict(total_episodes=BATCH * 6, target_score=score + 0.01), False),
    ):
        trainer = again(**settings)
        assert (trainer.restored()[0], trainer.restored()[2]) == (ITERATIONS, ended), settings


def test_a_run_that_lost_its_checkpoints_keeps_its_record(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[3], folder)
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    before = (folder / "ppo.jsonl").read_bytes()
    with pytest.raises(UserError, match="checkpoints' holds no checkpoint, but .*ppo.jsonl' has 4 steps .*--workdir"):
        make_trainer(folder)
    assert (folder / "ppo.jsonl").read_bytes() == before and len(before.splitlines()) == ITERATIONS


def test_a_resumed_run_samples_as_it_did_whatever_is_measured_since(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def clock(faster):
        def seconds_of(run, compiled):
            run(compiled)
            return 1.0 if compiled is faster else 2.0

        monkeypatch.setattr(modes, "seconds_of", seconds_of)

    def interrupting(prompts, responses):
        os.kill(os.getpid(), signal.SIGINT)
        return byte_mean(prompts, responses)

    def trainer(name, function=byte_mean):
        sampling = dict(jit_compile=None, native=False)
        return make_trainer(tmp_path / name, function, sampling=sampling, total_episodes=BATCH * 2)

    def scalars(name):
        return [{tag: row[tag] for tag in row if not tag.startswith("time/")} for row in rows(tmp_path / name)]

    clock(faster=False)
    straight = trainer("straight")
    straight.train()
    measured = straight.collector.sampler.engine
    for function in straight.collector.sampler.functions.values():
        assert function.experimental_get_tracing_count() == 1
    with pytest.raises(Interrupted):
        trainer("broken", interrupting).train()
    clock(faster=True)
    file = modes.modes_file()
    file.write_text(json.dumps({key: not mode for key, mode in json.loads(file.read_text()).items()}))
    fresh = trainer("fresh")
    fresh.collector.sampler(fresh.prompts.batch(0, BATCH), seed_for(0, "sample"))
    assert fresh.collector.sampler.engine.compiled is True
    shared_parts().collectors.clear()  # as in a process that has traced nothing
    resumed = trainer("broken")
    resumed.train()
    assert resumed.collector.sampler.engine.compiled is measured.compiled is False
    assert resumed.collector.sampler.functions["XLA"].experimental_get_tracing_count() == 0
    assert scalars("broken") == scalars("straight") and len(scalars("broken")) == 2
    for weight, expected in zip(resumed.history[-1], straight.history[-1], strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_another_reference_is_refused(finished):
    folder = finished[3]
    trainer = finished[0]
    identity = trainer.keeper.identity
    its_own = {"tokenizer", "reference", "models of reward.functions", "set of prompts", "ppo.trainable_blocks"}
    assert set(identity) == its_own
    manifest = json.loads((folder / "checkpoints" / f"ckpt-{ITERATIONS}.json").read_text())
    assert manifest["identity"] == identity
    weights = trainer.collector.ref_model.get_weights()
    assert len({weight.tobytes() for weight in weights}) > 5


def test_another_number_of_trainable_blocks_is_refused(tmp_path):
    settings = dict(trainable_blocks=1, total_episodes=BATCH)
    make_trainer(tmp_path, **settings).train()
    with pytest.raises(UserError, match="the checkpoint in .* goes with another ppo.trainable_blocks"):
        make_trainer(tmp_path, **{**settings, "trainable_blocks": None})
    assert make_trainer(tmp_path, **settings).restored()[::2] == (1, True)


def test_steps_of_the_critic_alone_are_counted_and_kept(tmp_path, monkeypatch):
    """Two minibatches an iteration; three iterations of the critic alone, and a run that ends after two of them."""
    settings = dict(critic_warmup_iterations=3)
    short = make_trainer(tmp_path / "run", **settings, total_episodes=BATCH * 2)
    given, update = [], short.learner.update
    monkeypatch.setattr(short.learner, "update", lambda *args: given.append(int(args[4])) or update(*args))
    short.train()
    assert given == [0, 2] and short.idle_steps == 4
    assert short.keeper.scalars["idle_steps"] == 4.0
    # They are numbers of the run, whatever the settings are by now.
    resumed = make_trainer(tmp_path / "run", **{**settings, "critic_warmup_iterations": 0}, ppo_epochs=2)
    assert resumed.idle_steps == 4
    resumed.improve(resumed.collect(2).rollout, 2, 0.05)
    assert resumed.idle_steps == 4


def test_a_checkpoint_from_before_idle_steps_were_counted_goes_on(tmp_path):
    settings = dict(critic_warmup_iterations=1, total_episodes=BATCH * 2)
    trainer = make_trainer(tmp_path, **settings)
    kept = {name: part for name, part in trainer.keeper._parts.items() if name != "idle_steps"}
    trainer.keeper._checkpoint = tf.train.Checkpoint(**kept)
    _ = trainer.keeper._checkpoint.save_counter  # as the keeper's own has it
    trainer.train()
    saved = tf.train.load_checkpoint(str(tmp_path / "checkpoints" / "ckpt-2")).get_variable_to_shape_map()
    assert not any("idle_steps" in name for name in saved)
    again = make_trainer(tmp_path, **settings)
    assert (again.done, again.idle_steps) == (2, 2)  # one iteration of two minibatches
    for weight, expected in zip(again.learner.policy.get_weights(), trainer.history[-1], strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_the_average_of_what_does_not_learn_keeps_its_last_bit(tmp_path):
    trainer = make_trainer(tmp_path, trainable_blocks=1, ema_decay=0.9, ema=True)
    trunk, average = (policy.language_model.trunk for policy in (trainer.learner.policy, trainer.ema))
    start = [variable.numpy() for variable in trunk.embeddings()]
    trainer.train()
    for variable, mean, before in zip(trunk.embeddings(), average.embeddings(), start, strict=True):
        np.testing.assert_array_equal(variable, before)
        np.testing.assert_array_equal(mean, before)
    assert np.abs(trunk.final_norm.beta.numpy() - average.final_norm.beta.numpy()).max() > 1e-4


def new_policy(folder, seed=3, draws=1, **ppo):
    """The policy of an experiment over the last of some language models, and that model."""
    models = [LanguageModel(40, 1, 2, 8, 16, 8) for _ in range(draws)]
    return ppo_stage.new_policy(PpoConfig(**ppo), seed, models[-1], Tokenizer([])), models[-1]


def test_an_mlp_head_of_one_seed_is_the_same_whatever_was_drawn_before(tmp_path):
    def head(**arguments):
        return new_policy(tmp_path, value_head="mlp", **arguments)[0].value_hidden_kernel.numpy()

    np.testing.assert_array_equal(head(draws=1), head(draws=2))
    assert np.abs(head(seed=3) - head(seed=4)).max() > 0.1


def test_a_critic_from_scratch_has_weights_of_its_own(tmp_path):
    policy, model = new_policy(tmp_path, critic="separate", critic_init="scratch")
    fresh = policy.critic.token_embedding.numpy()
    assert np.abs(fresh - model.trunk.token_embedding.numpy()).max() > 1e-3
    assert 0.01 < fresh.std() < 0.03  # as a language model's at first
    again, _ = new_policy(tmp_path, draws=2, critic="separate", critic_init="scratch")  # whatever was drawn before
    np.testing.assert_array_equal(again.critic.token_embedding, fresh)
    copied, model = new_policy(tmp_path, critic="separate")
    np.testing.assert_array_equal(copied.critic.token_embedding, model.trunk.token_embedding)


def test_an_average_starts_as_the_policy(tmp_path):
    policy, _ = new_policy(tmp_path, critic="separate", critic_init="scratch", value_head="mlp")
    for mean, weight in zip(copy_policy(policy).get_weights(), policy.get_weights(), strict=True):
        np.testing.assert_array_equal(mean, weight)


def test_the_target_score_ends_the_run_for_good(tmp_path):
    """Score 1 in the first iteration, 2 in the second, ...; the target is 2."""
    calls = []

    def counted(prompts, responses):
        calls.append(len(responses))
        return [float(len(calls))] * len(responses)

    def trainer():
        return make_trainer(tmp_path, counted, target_score=2.0, total_episodes=BATCH * 50)

    trainer().train()
    assert len(calls) == 2 and [row["objective/score"] for row in rows(tmp_path)] == [1.0, 2.0]
    again = trainer()
    assert again.restored()[::2] == (2, True)
    again.train()
    assert len(calls) == 2 and len(rows(tmp_path)) == 2


def test_a_request_to_stop_in_the_last_iteration_is_heard(tmp_path):
    def interrupting(prompts, responses):
        os.kill(os.getpid(), signal.SIGINT)
        return [0.0] * len(responses)

    trainer = make_trainer(tmp_path, interrupting, total_episodes=BATCH)
    with pytest.raises(Interrupted, match="saved after 1 of 1 iterations"):
        trainer.train()
    assert trainer.keeper.scalars["finished"] == 1.0 and (tmp_path / "checkpoints" / "ckpt-1.index").exists()


def test_trajectories_of_the_data(tmp_path):
    trainer = make_trainer(tmp_path, trajectories="dataset", sampling=dict(stop_at_eos=True), total_episodes=BATCH * 2)
    for step in range(2):
        rollout = trainer.collect(step).rollout
        for row in range(BATCH):
            prompt = [token for token in rollout.prompt_ids[row].numpy().tolist() if token]
            n = prompt[1] - 2
            data = [*range(4 + n, 4 + n + n % 5), EOS][:RESPONSE]
            assert prompt == [EOS, 2 + n, 3 + n]
            assert rollout.response_ids[row].numpy().tolist() == data + [0] * (RESPONSE - len(data))
    trainer.train()
    assert len(rows(tmp_path)) == 2
    for row in rows(tmp_path):
        assert row["policy/first_ratio_error"] < 1e-4
    assert rows(tmp_path)[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)


def test_each_prompt_stands_group_size_times(tmp_path):
    trainer = make_trainer(tmp_path, estimator="rloo", group_size=4, value_coef=0.0)
    rollout = trainer.collect(0).rollout
    groups = rollout.prompt_ids.numpy().reshape(2, 4, -1)
    assert (groups == groups[:, :1]).all() and (groups[0] != groups[1]).any()
    responses = rollout.response_ids.numpy().reshape(2, 4, -1)
    assert all(len({tuple(row) for row in group.tolist()}) > 1 for group in responses)


def test_every_iteration_has_seeds_prompts_and_a_rate_of_its_own(tmp_path, monkeypatch):
    """And the same ones when it comes again, as in a run that goes on."""
    trainer = make_trainer(tmp_path)
    optimizer = trainer.learner.optimizer
    monkeypatch.setattr(trainer.collector, "collect", lambda prompts, seed, columns: (prompts, seed))
    monkeypatch.setattr(
        trainer.learner, "update", lambda rollout, seed, *_: {"seed": seed[0], "rate": optimizer.learning_rate.numpy()}
    )

    def given(step):
        prompts, seed = trainer.collect(step)
        update = trainer.improve(None, step, 0.05)
        return prompts.prompt_ids.numpy().tobytes(), seed.tobytes(), update["seed"], update["rate"]

    iterations = [given(step) for step in range(ITERATIONS)]
    for numbers in zip(*iterations, strict=True):
        assert len(set(numbers)) == ITERATIONS
    np.testing.assert_allclose([rate for *_, rate in iterations], [0.01, 0.0075, 0.005, 0.0025], rtol=1e-6)
    assert [given(step) for step in reversed(range(ITERATIONS))] == iterations[::-1]
    samples, shuffles = ([int.from_bytes(seed[:4], "little", signed=True) for _, seed, *_ in iterations], iterations)
    assert not set(samples) & {int(shuffle) for _, _, shuffle, _ in shuffles}


def test_what_cannot_be_trusted_ends_the_run(tmp_path):
    trainer = make_trainer(tmp_path)
    good = {"policy/first_ratio_error": 0.9 * EXACT_TOLERANCE, "policy/gradient_norm": 1.0}
    trainer.check(good)
    for error in (1.1 * EXACT_TOLERANCE, float("nan")):
        with pytest.raises(UserError, match="probability ratio on the first minibatch"):
            trainer.check({**good, "policy/first_ratio_error": error})
    for norm in (float("inf"), float("nan")):
        with pytest.raises(UserError, match="gradient that was not finite.*ppo.learning_rate 0.01"):
            trainer.check({**good, "policy/gradient_norm": norm})
    trainer.ratio_tolerance = 0.5
    trainer.check({**good, "policy/first_ratio_error": 0.4})
    assert [trainer.is_finished(done, -1e9) for done in (0, ITERATIONS - 1, ITERATIONS)] == [False, False, True]

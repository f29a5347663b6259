"""Reward models are trained: they learn, go on where they were, and become PPO's reward and critic.

The number of devices is fixed once in a process, so the run on two replicas is a process of its own: this file, run as
a program.
"""

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from binaries import ROOT, TINY, command, run, succeed, write_texts
from computations import engines_of
from warm import WarmProcess

from tfppo.config import Config, RewardModelConfig, SamplingConfig
from tfppo.data.preferences import encode_preferences, load_preferences
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.folder import load_language_model, load_reward_model
from tfppo.models.language_model import LanguageModel
from tfppo.models.reward_model import RewardModel
from tfppo.ppo.types import Samples
from tfppo.reward_model import normalization
from tfppo.reward_model.normalization import normalize
from tfppo.reward_model.trainer import RewardTrainer, num_tokens
from tfppo.training import programs
from tfppo.training.interrupt import Interrupted
from tfppo.training.metrics import read_metrics
from tfppo.training.programs import CompiledProgram
from tfppo.training.replicas import make_strategy

WORDS = [
    "the",
    "film",
    "is",
    "a",
    "story",
    "of",
    "love",
    "and",
    "war",
    "with",
    "great",
    "poor",
    "acting",
    "that",
    "we",
    "like",
    "hate",
    "so",
    "much",
]
TOKENIZER = Tokenizer.train([" ".join(WORDS) + " good bright"], 300)
SIZES = dict(num_layers=1, num_heads=2, hidden_dim=32, intermediate_dim=64, max_sequence_length=64)


def write_comparisons(path, count=400, rejected=1):
    """Comparisons in which the chosen response has the word "good" and the rejected ones have "bright" in its place."""
    rng = np.random.default_rng(0)

    def response(word):
        words = rng.choice(WORDS, 6).tolist()
        return " " + " ".join([*words[:3], word, *words[3:]])

    records = [
        {
            "prompt": " ".join(rng.choice(WORDS, 4)),
            "chosen": response("good"),
            "rejected": [response("bright") for _ in range(rejected)],
        }
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def make_trainer(folder, config, num_replicas=1, seed=0):
    """A trainer from a random language model; the same one for the same seed."""
    strategy = make_strategy(num_replicas)
    keras.utils.set_random_seed(seed)
    language_model = LanguageModel(TOKENIZER.vocabulary_size, **SIZES)
    with strategy.scope():
        model = RewardModel.from_language_model(language_model)
    preferences = load_preferences(config.source)
    train, validation = (encode_preferences(preferences[split], TOKENIZER, config) for split in ("train", "validation"))
    return RewardTrainer(config, 0, model, TOKENIZER, train, validation, strategy, folder)


def timeless(path):
    """The rows of a JSONL record without what is measured by the clock."""
    return [{tag: v for tag, v in row.items() if not tag.startswith("time/")} for row in read_metrics(path)]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Trainers after their training, with one rejected response and with three, by that number."""
    trainers = {}
    for rejected in (1, 3):
        folder = tmp_path_factory.mktemp("learnt")
        source = write_comparisons(folder / "c.jsonl", rejected=rejected)
        config = RewardModelConfig(source=source, learning_rate=3e-3, num_epochs=4, eval_every=10)
        trainers[rejected] = make_trainer(folder, config)
        trainers[rejected].train()
    return trainers


@pytest.mark.parametrize("rejected", [1, 3])
def test_it_learns_what_was_preferred(learnt, rejected):
    trainer = learnt[rejected]
    rows = read_metrics(trainer.folder / "reward_training.jsonl")
    assert [row["step"] for row in rows] == list(range(1, trainer.num_steps + 1))
    held_out = {row["step"]: row for row in rows if "reward_model/held_out_loss" in row}
    assert set(held_out) == {*range(10, trainer.num_steps, 10), trainer.num_steps}
    last = rows[-1]
    assert last["reward_model/held_out_accuracy"] >= 0.95 and last["reward_model/held_out_loss"] < 0.2
    # Before it has learnt anything, all K responses are as likely to be the best.
    assert abs(rows[0]["reward_model/loss"] - np.log(1 + rejected)) < 0.5
    assert rows[0]["reward_model/learning_rate"] == 3e-3
    assert last["reward_model/learning_rate"] == pytest.approx(3e-3 / trainer.num_steps)


def test_an_epoch_sees_every_comparison(tmp_path):
    config = RewardModelConfig(source=write_comparisons(tmp_path / "c.jsonl", 50), batch_size=16)
    trainer = make_trainer(tmp_path, config)
    count = len(trainer.train_data.prompt_ids)
    assert trainer.num_steps == -(-count // 16) and count % 16
    seen = np.concatenate([trainer.batch(step).response_ids for step in range(trainer.num_steps)])
    assert len(np.unique(seen[:count], axis=0)) == count
    batch = trainer.batch(0)
    texts = [*batch.response_mask.reshape(32, -1), *np.repeat(batch.prompt_mask, 2, axis=0)]
    assert num_tokens(batch) == sum(row.sum() for row in texts)


def test_every_step_has_comparisons_and_a_rate_of_its_own(tmp_path, monkeypatch):
    config = RewardModelConfig(source=write_comparisons(tmp_path / "c.jsonl", 80), batch_size=16, learning_rate=1.0)
    trainer, steps = make_trainer(tmp_path, config), []

    def update(batch):
        steps.append((batch.response_ids.tobytes(), trainer.optimizer.learning_rate.numpy()))
        return (0.0, 0.0), 0.0

    monkeypatch.setattr(trainer, "_update", update)
    monkeypatch.setattr(trainer, "_held_out_scores", lambda comparisons: np.zeros(comparisons.response_ids.shape[:2]))
    trainer.train()
    assert len({batch for batch, _ in steps}) == trainer.num_steps == len(steps) > 2
    expected = 1 - np.arange(len(steps)) / len(steps)
    np.testing.assert_allclose([rate for _, rate in steps], expected, rtol=1e-6)


def test_every_batch_of_samples_has_a_seed_of_its_own(tmp_path, monkeypatch):
    config = Config(sampling=SamplingConfig(response_length=4))
    config.reward_model = RewardModelConfig(
        source=write_comparisons(tmp_path / "c.jsonl", 80), batch_size=16, normalize_samples=48
    )
    seeds = []

    class Recorder:
        def __init__(self, *_, **__):
            pass

        def __call__(self, prompts, seed):
            seeds.append(tuple(seed))
            ids = np.full([len(prompts.prompt_ids), 4], 5, np.int32)
            return Samples(*map(tf.constant, (ids, np.ones(ids.shape, np.float32), 0.0, 0.0, False)))

    monkeypatch.setattr(normalization, "Sampler", Recorder)
    train = make_trainer(tmp_path, config.reward_model).train_data
    model = LanguageModel(TOKENIZER.vocabulary_size, **SIZES)
    samples = normalization.sample_responses(model, train, TOKENIZER, config, engines=())
    assert len(samples.response_ids) == 48 and len(set(seeds)) == len(seeds) == 3


def test_a_resumed_run_equals_one_that_was_not_interrupted(learnt, tmp_path):
    whole, broken = learnt[1], tmp_path / "broken"
    source = shutil.copy(whole.config.source, tmp_path)
    config = replace(whole.config, source=source)
    first = make_trainer(broken, config)
    batch_of = first.batch

    def interrupted_batch(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return batch_of(step)

    first.batch = interrupted_batch
    with pytest.raises(Interrupted, match=f"saved after 7 of {whole.num_steps} steps"):
        first.train()
    second = make_trainer(broken, config)
    assert second.done == 7
    second.train()
    for found, expected in zip(second.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert timeless(broken / "reward_training.jsonl") == timeless(whole.folder / "reward_training.jsonl")
    assert make_trainer(broken, config).done == whole.num_steps  # and a third time nothing is left to do
    with pytest.raises(UserError, match="goes with another language model"):
        make_trainer(broken, config, seed=1)
    write_comparisons(tmp_path / "c.jsonl", 401)
    with pytest.raises(UserError, match="goes with another set of comparisons"):
        make_trainer(broken, config)
    shutil.rmtree(broken / "reward_checkpoints")
    with pytest.raises(UserError, match=f"holds no checkpoint, but .*reward_training.* {whole.num_steps} steps"):
        make_trainer(broken, config)


def test_a_gradient_that_is_not_finite_ends_the_training(tmp_path):
    source = write_comparisons(tmp_path / "c.jsonl", 100)
    trainer = make_trainer(tmp_path / "run", RewardModelConfig(source=source, batch_size=16))
    trainer.model.head_kernel.assign(np.nan * trainer.model.head_kernel)
    with pytest.raises(UserError, match="step 1 had a gradient that is not finite.* lower reward_model.learning_rate"):
        trainer.train()
    assert not (tmp_path / "run" / "reward_checkpoints").exists()


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory):
    """Weights after training and normalising, on each replica [replicas, weights], by number of replicas."""
    folder = tmp_path_factory.mktemp("replicas")
    source = write_comparisons(folder / "c.jsonl", 200, rejected=3)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    process = WarmProcess([__file__, "2", str(folder), source], env=environment, cwd=ROOT)
    train_on(1, folder, source)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    return {count: np.load(folder / f"{count}.npz") for count in (1, 2)}


def test_two_replicas_agree_with_one(weights_of):
    (alone,), two, start = weights_of[1]["weights"], weights_of[2]["weights"], weights_of[1]["start"]
    assert len(two) == 2
    np.testing.assert_array_equal(two[0], two[1])
    assert np.abs(alone - start).max() > 1e-2
    assert np.linalg.norm(two[0] - alone) <= 1e-4 * np.linalg.norm(alone - start)
    np.testing.assert_allclose(weights_of[2]["losses"], weights_of[1]["losses"], rtol=1e-4)


def test_a_batch_that_the_replicas_do_not_divide_is_refused(weights_of):
    assert weights_of[2]["refusal"] == "reward_model.batch_size is 15; the number of replicas, 2, must divide it"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A language model, a reward model from it, and PPO with it as reward and critic, by the binaries."""
    folder = tmp_path_factory.mktemp("chain")
    workdir = f"--workdir={folder / 'run'}"
    settings = (
        *TINY,
        write_texts(folder / "texts.txt"),
        f"reward_model.source={write_comparisons(folder / 'c.jsonl', 200)}",
        "reward_model.learning_rate=0.003",
        "reward_model.normalize_samples=48",
    )
    reward = "reward.functions=('reward_model:',)"
    critic = ("ppo.critic=separate", f"ppo.critic_init={folder / 'run' / 'reward_model'}")

    def reward_model(*more):
        return command("train_reward_model", workdir, config=(*settings, *more))

    succeed(run(command("train_lm", workdir, config=settings)))
    # One after the other: a folder is one run's at a time.
    ends = {"too long": run(reward_model("reward_model.max_response_tokens=33"))}
    ends["trained"] = succeed(run(reward_model()))
    ends["again"] = run(reward_model())
    # TensorFlow's own operations compute it all, and none of them refuses to be deterministic.
    how = "deterministic=True", "ppo.native=False", "sampling.native=False", "ppo.total_episodes=16", "ppo.ppo_epochs=1"
    ends["ppo"] = run(command("train_ppo", workdir, config=(*settings, reward, *critic, *how)))
    return folder / "run", ends


def test_the_binary_leaves_a_reward_model(chain):
    workdir, ends = chain
    assert f"reward model: {workdir / 'reward_model'}\n" in ends["trained"].out
    assert "held-out loss" in ends["trained"].out and ends["trained"].err == []
    model, tokenizer = load_reward_model(workdir / "reward_model")
    language_model, its_tokenizer = load_language_model(workdir / "lm")
    assert tokenizer.digest() == its_tokenizer.digest() and np.any(model.head_bias)
    assert model.trunk.sizes == language_model.trunk.sizes
    assert json.loads((workdir / "config.json").read_text())["reward_model"]["normalize_samples"] == 48
    assert "reward_model" in succeed(ends["again"]).out


def test_ppo_runs_with_it_as_reward_and_critic(chain):
    workdir, ends = chain
    succeed(ends["ppo"])
    rows = read_metrics(workdir / "ppo.jsonl")
    assert len(rows) == 2 and all(row["reward/reward_model"] == row["objective/score"] for row in rows)
    assert all(abs(row["reward/reward_model"]) < 5 for row in rows)
    assert rows[0]["value/mean"] != 0.0  # the critic starts from the reward model, not at 0


def test_a_mistake_is_told_in_one_line(chain):
    finished = chain[1]["too long"]
    assert finished.code == 1, finished.raw
    (line,) = finished.err
    message = "reward_model.max_response_tokens is 33: .* 65 positions, .*lm' has 64; lower one of them"
    assert re.fullmatch(f"error: {message}", line), line


def test_samples_that_all_score_the_same_cannot_be_normalised(tmp_path):
    config = Config(reward_model=RewardModelConfig(source=write_comparisons(tmp_path / "c.jsonl", 40)))
    config.sampling.jit_compile, config.reward_model.normalize_samples = False, 32
    trainer = make_trainer(tmp_path, config.reward_model)
    trainer.model.head_kernel.assign(0.0 * trainer.model.head_kernel)
    language_model = LanguageModel(TOKENIZER.vocabulary_size, **SIZES)
    with pytest.raises(UserError, match="reward_model.normalize is 'samples', but all 32 samples .* score 0; raise"):
        normalize(trainer.model, language_model, trainer.train_data, TOKENIZER, config, engines_of(config))
    before = trainer.model.get_weights()
    config.reward_model.normalize = "none"
    normalize(trainer.model, language_model, trainer.train_data, TOKENIZER, config, engines_of(config))
    for found, expected in zip(trainer.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def train_on(num_replicas, folder, source):
    """Trains and normalises on replicas, and saves what the tests compare."""
    settings = RewardModelConfig(
        source=source, learning_rate=3e-3, batch_size=16, max_grad_norm=0.5, normalize_samples=64
    )
    config = Config(reward_model=settings)
    config.sampling.jit_compile = False
    trainer = make_trainer(folder / str(num_replicas), settings, num_replicas)
    start = np.concatenate([weight.ravel() for weight in trainer.model.get_weights()])
    trainer.train()
    language_model = LanguageModel(TOKENIZER.vocabulary_size, **SIZES)
    normalize(trainer.model, language_model, trainer.train_data, TOKENIZER, config, engines_of(config))
    parts = [trainer.strategy.experimental_local_results(variable.value) for variable in trainer.model.variables]
    weights = [np.concatenate([part[i].numpy().ravel() for part in parts]) for i in range(num_replicas)]
    losses = [row["reward_model/loss"] for row in read_metrics(folder / str(num_replicas) / "reward_training.jsonl")]
    refusal = ""
    try:
        make_trainer(folder / "refused", RewardModelConfig(source=source, batch_size=15), num_replicas)
    except UserError as error:
        refusal = str(error)
    np.savez(folder / f"{num_replicas}.npz", weights=weights, start=start, losses=losses, refusal=refusal)


if __name__ == "__main__":
    train_on(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])


def test_on_a_gpu_a_step_is_one_program_and_the_same(tmp_path, monkeypatch):
    config = RewardModelConfig(source=write_comparisons(tmp_path / "c.jsonl", 80), batch_size=16)
    weights = []
    for on_gpu in (False, True):
        monkeypatch.setattr(programs, "has_gpu", lambda on_gpu=on_gpu: on_gpu)
        trainer = make_trainer(tmp_path / str(on_gpu), config)
        trainer.optimizer.learning_rate.assign(1e-2)
        assert isinstance(trainer._step, CompiledProgram) is on_gpu
        for step in range(2):
            (loss, accuracy), norm = trainer._update(trainer.batch(step))
        weights.append([*trainer.model.get_weights(), loss.numpy(), accuracy.numpy(), norm.numpy()])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=5e-5)

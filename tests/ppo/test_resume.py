"""A run that was interrupted and continued equals one that was not, bit for bit; so for both trainers.

Ctrl-C is a real SIGINT to a real process: in language-model training the test sends it once the first checkpoint is
there; in PPO the reward function does, so that it comes in the middle of a rollout.
"""

import hashlib
import json
import re
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from binaries import TINY, command, finish, run, start, succeed, write_texts
from conftest import THREADS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_digests import weights_digest

from tfppo.models.folder import load_language_model, load_policy

# Interrupts its own process in the call whose number stands in a file.
REWARD = """
import os, signal

calls = 0


def plain_words(prompts, responses):
    global calls
    calls += 1
    if os.path.exists({number!r}) and calls == int(open({number!r}).read()):
        os.kill(os.getpid(), signal.SIGINT)
    return [sum(c.isascii() for c in response) / 4 for response in responses]
"""
AGAIN = "press Ctrl-C again to stop at once without saving it"
LM_STEPS, LM_CHECKPOINT, ITERATIONS, INTERRUPTED_AFTER = 120, 20, 6, 3
EVALUATIONS = 2  # before the interruption: at the start, and after iteration 2


def checkpoint_digest(path):
    """SHA-256 over every tensor of a checkpoint, the optimizer's included, but for its own bookkeeping."""
    reader = tf.train.load_checkpoint(str(path))
    names = sorted(reader.get_variable_to_shape_map())
    digest = hashlib.sha256()
    names = [
        name
        for name in names
        if name not in ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    ]
    assert any("optimizer" in name for name in names)
    for name in names:
        digest.update(name.encode() + np.asarray(reader.get_tensor(name)).tobytes())
    return digest.hexdigest()


def metrics(path):
    """The rows of a JSONL record without what is measured by the clock."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {tag: value for tag, value in row.items() if not tag.startswith("time/") and "per_second" not in tag}
        for row in rows
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a straight run and an interrupted one, and how the interrupted commands ended.

    With as many threads as a user's: the order in which they end must not show.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in THREADS:
            patch.delenv(name)
        return make_runs(tmp_path_factory.mktemp("resume"))


def make_runs(folder):
    number = folder / "interrupted_call"
    (folder / "reward.py").write_text(REWARD.format(number=str(number)))
    settings = (
        *TINY,
        "model.num_layers=2",
        write_texts(folder / "texts.txt"),
        f"reward.functions=('{folder / 'reward.py'}:plain_words',)",
        # All of this is state that has to come back from the checkpoint.
        "reward.normalize=True",
        "ppo.ema_decay=0.5",
        "ppo.trainable_blocks=1",
        "ppo.embedding_learning_rate=none",
        "ppo.value_head=mlp",
        "model.dropout=0.2",
        f"lm.num_steps={LM_STEPS}",
        f"lm.eval_every={LM_CHECKPOINT}",
        "lm.patience=0",
        f"ppo.total_episodes={8 * ITERATIONS}",
        "ppo.learning_rate=0.003",
        "ppo.adaptive_kl_target=0.5",
        "ppo.adaptive_kl_horizon=50",
        "evaluation.every=2",
        "evaluation.num_prompts_in_training=8",
        "checkpoint_every=2",
    )
    straight, broken = folder / "straight", folder / "broken"
    lm = {name: command("train_lm", f"--workdir={folder / name}", config=settings) for name in ("straight", "broken")}
    ppo = {name: command("train_ppo", f"--workdir={folder / name}", config=settings) for name in ("straight", "broken")}

    uninterrupted, interrupted = start(lm["straight"]), start(lm["broken"])
    first = broken / "lm_checkpoints" / f"ckpt-{LM_CHECKPOINT}.index"
    while not first.exists() and interrupted.poll() is None:
        time.sleep(0.005)
    interrupted.send_signal(signal.SIGINT)
    ends = {"lm": finish(interrupted)}
    ends["lm at the stop"] = [path.stem for path in (broken / "lm_checkpoints").glob("*.index")]
    succeed(finish(uninterrupted))
    # The straight PPO run beside the end of the other language model.
    uninterrupted = start(ppo["straight"])
    succeed(run(lm["broken"]))
    succeed(finish(uninterrupted))
    number.write_text(str(INTERRUPTED_AFTER + EVALUATIONS))
    ends["ppo"] = run(ppo["broken"])
    number.unlink()
    ends["ppo at the stop"] = checkpoint_digest(broken / "checkpoints" / f"ckpt-{INTERRUPTED_AFTER}")
    ends["policy at the stop"] = (broken / "policy").exists()
    succeed(run(ppo["broken"]))
    return straight, broken, ends


def test_ctrl_c_in_language_model_training_saves_and_says_how_to_go_on(runs):
    _, _, ends = runs
    assert ends["lm"].code == 130, ends["lm"].raw
    asked, line = ends["lm"].err
    assert re.fullmatch(rf"stopping: finishing step \d+, about 1 s; {AGAIN}", asked)
    match = re.fullmatch(rf"saved after (\d+) of {LM_STEPS} steps; run the same command again to go on", line)
    assert match, line
    assert LM_CHECKPOINT <= int(match[1]) < LM_STEPS
    assert f"ckpt-{match[1]}" in ends["lm at the stop"]


def test_ctrl_c_in_a_rollout_finishes_the_iteration_and_saves(runs):
    _, _, ends = runs
    assert ends["ppo"].code == 130, ends["ppo"].raw
    expected = f"saved after {INTERRUPTED_AFTER} of {ITERATIONS} iterations; run the same command again to go on"
    asked, line = ends["ppo"].err
    assert re.fullmatch(rf"stopping: finishing iteration {INTERRUPTED_AFTER}, about \d+ s; {AGAIN}", asked)
    assert line == expected
    assert not ends["policy at the stop"]


def test_the_language_models_are_equal(runs):
    straight, broken, _ = runs
    last = f"lm_checkpoints/ckpt-{LM_STEPS}"
    assert checkpoint_digest(straight / last) == checkpoint_digest(broken / last)
    assert weights_digest(straight / "lm") == weights_digest(broken / "lm")
    rows = metrics(straight / "lm_training.jsonl")
    assert [row["step"] for row in rows] == list(range(1, LM_STEPS + 1))
    assert metrics(broken / "lm_training.jsonl") == rows


def test_the_policies_are_equal(runs):
    straight, broken, ends = runs
    last = f"checkpoints/ckpt-{ITERATIONS}"
    assert checkpoint_digest(straight / last) == checkpoint_digest(broken / last) != ends["ppo at the stop"]
    for name in ("policy", "policy_average", "policy_best"):
        assert weights_digest(straight / name) == weights_digest(broken / name)
    assert weights_digest(straight / "policy_average") != weights_digest(straight / "policy")
    rows = metrics(straight / "ppo.jsonl")
    assert [row["step"] for row in rows] == list(range(1, ITERATIONS + 1))
    assert len({row["objective/kl_coef"] for row in rows}) == ITERATIONS
    assert metrics(broken / "ppo.jsonl") == rows
    rows = metrics(straight / "ppo_evaluation.jsonl")
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    assert metrics(broken / "ppo_evaluation.jsonl") == rows


def test_the_top_block_alone_has_learnt_and_nothing_says_so_later(runs):
    straight, _, _ = runs
    (policy, _), (average, _) = (load_policy(straight / name) for name in ("policy", "policy_average"))
    before, _ = load_language_model(straight / "lm")
    assert len(policy.trainable_variables) == len(policy.variables)
    for after in (policy, average):
        trunk, old = after.language_model.trunk, before.trunk
        assert after.mlp_value_head and len(trunk.blocks) == 2
        frozen, expected = ([*part.embeddings(), *part.blocks[0].variables] for part in (trunk, old))
        for variable, same in zip(frozen, expected, strict=True):
            np.testing.assert_array_equal(variable, same)
        for variable, other in zip(trunk.blocks[1].variables, old.blocks[1].variables, strict=True):
            assert np.abs(variable.numpy() - other.numpy()).max() > 1e-4, variable.path


def test_tensorboard_shows_no_step_twice(runs):
    _, broken, _ = runs
    for folder, tag, steps in (
        ("ppo", "objective/kl", range(1, ITERATIONS + 1)),
        ("ppo", "charts/kl", range(1, ITERATIONS + 1)),
        ("ppo_evaluation", "evaluation/kl", (0, 2, 4, 6)),
        ("ppo_evaluation", "evaluation/samples", (0, 2, 4, 6)),
        ("lm_training", "lm/loss", range(1, LM_STEPS + 1)),
    ):
        events = EventAccumulator(str(broken / folder), size_guidance={"tensors": 0})
        events.Reload()
        assert [event.step for event in events.Tensors(tag)] == list(steps)

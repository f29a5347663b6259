"""What only a GPU can show: `pytest -m gpu`, of some minutes, for most of them are XLA's.

The binaries run as a user's do, at toy size, in processes of their own: one process takes all of a card's memory.
"""

import json
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from binaries import TINY, command, run, succeed, write_texts
from training_digests import weights_digest

# As a user has them: the toy settings switch XLA off.
SETTINGS = (
    *(setting for setting in TINY if "jit_compile" not in setting),
    "ppo.learning_rate=0.003",
    "ppo.schedule=constant",
    "evaluation.every=0",
)
NAMES = {
    "float32": ("ppo.update_dtype=float32",),
    "tensorfloat32": ("ppo.update_dtype=float32", "tensorfloat32=True"),
    "bfloat16": ("ppo.update_dtype=mixed_bfloat16",),
}
# Of the first iteration, from the same weights on.
SAME = ("objective/score", "objective/kl", "objective/entropy", "loss/policy", "loss/value", "policy/gradient_norm")
TOLERANCES = {"float32": 1e-4, "tensorfloat32": 0.065, "bfloat16": 0.28}


@pytest.fixture(scope="module", autouse=True)
def card():
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("there is no GPU")


def fresh(tool, workdir, settings, **variables):
    """A binary in a process of its own, which takes no more of the card's memory than it needs."""
    variables["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return succeed(run(command(tool, f"--workdir={workdir}", config=settings), **variables))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with texts and a language model, and the settings that name them."""
    folder = tmp_path_factory.mktemp("card")
    settings = (*SETTINGS, write_texts(folder / "texts.txt"))
    fresh("train_lm", folder / "lm", settings)
    return folder, (*settings, f"language_model={folder / 'lm' / 'lm'}")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "ppo.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_ratio_is_off_by_no_more_than_rounding(base, name):
    folder, settings = base
    out = fresh("train_ppo", folder / name, (*settings, *NAMES[name])).out
    assert "sampling responses: XLA" in out and "update: XLA" in out
    rows = rows_of(folder / name)
    assert len(rows) == 4
    assert max(row["policy/first_ratio_error"] for row in rows) <= TOLERANCES[name]


def test_a_deterministic_run_resumes_bit_for_bit(base):
    folder, settings = base
    settings = (*settings, "deterministic=True")
    straight, resumed = folder / "straight", folder / "resumed"
    fresh("train_ppo", straight, settings)
    fresh("train_ppo", resumed, (*settings, "ppo.total_episodes=16"))
    fresh("train_ppo", resumed, settings)
    assert weights_digest(straight / "policy") == weights_digest(resumed / "policy")


def test_programs_that_are_kept_give_the_same_run(base, tmp_path):
    folder, settings = base
    settings = (*settings, "deterministic=True", "compilation_cache=True")
    for name in ("cold", "warm"):
        fresh("train_ppo", folder / name, settings, XDG_CACHE_HOME=str(tmp_path))
    assert list(tmp_path.rglob("tfppo/programs/*/*.pb"))
    assert weights_digest(folder / "cold" / "policy") == weights_digest(folder / "warm" / "policy")


def assert_same_start(folders):
    """The first iterations are the same but for rounding: the texts, and what the update found."""
    rows, others = (rows_of(folder)[0] for folder in folders)
    assert rows["objective/score"] == others["objective/score"]
    for tag in SAME:
        assert rows[tag] == pytest.approx(others[tag], rel=1e-3, abs=1e-5), tag


def test_it_begins_as_on_a_cpu(base):
    folder, settings = base
    settings = (*settings, *NAMES["float32"])
    fresh("train_ppo", folder / "card", settings)
    by_xla = ("ppo.native=False", "sampling.native=False", "sampling.jit_compile=True", "ppo.jit_compile=True")
    fresh("train_ppo", folder / "cpu", (*settings, *by_xla), CUDA_VISIBLE_DEVICES="-1")
    assert_same_start((folder / "card", folder / "cpu"))


def test_two_replicas_begin_as_one(base):
    folder, settings = base
    settings = (*settings, *NAMES["float32"], "ppo.num_minibatches=4")
    fresh("train_ppo", folder / "one", settings)
    flags = command("train_ppo", f"--workdir={folder / 'two'}", config=(*settings, "num_replicas=2"))[2:]
    both = str(Path(__file__).parent / "two_on_one_card.py")
    succeed(run([sys.executable, both, *flags], TF_FORCE_GPU_ALLOW_GROWTH="true"))
    assert_same_start((folder / "one", folder / "two"))

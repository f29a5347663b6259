"""Checkpoints: what is saved comes back, damage falls back to the one before, another architecture is refused."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfppo.checkpoint import CheckpointKeeper
from tfppo.errors import UserError


def make_model(width=4, layers=1):
    inputs = keras.Input([3])
    hidden = inputs
    for number in range(layers):
        hidden = keras.layers.Dense(width, name=f"hidden_{number}")(hidden)
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden))


class State:
    """A model with an optimizer that has moved, and their keeper."""

    def __init__(self, folder, keep=3, **sizes):
        self.model = make_model(**sizes)
        self.optimizer = keras.optimizers.Adam(0.1)
        self.optimizer.build(self.model.trainable_variables)
        self.keeper = CheckpointKeeper(
            folder, model=self.model, optimizer=self.optimizer, scalars={"kl_coef": 0.05}, keep=keep
        )

    def step(self):
        self.optimizer.apply([tf.ones_like(v.value) * 0.3 for v in self.model.trainable_variables])

    def arrays(self):
        return [v.numpy() for v in (*self.model.variables, *self.optimizer.variables)]


def same(first, second):
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 2 and 4, and the arrays of each."""
    state, arrays = State(tmp_path / "run"), {}
    for step in (2, 4):
        state.step()
        state.keeper.save(step, kl_coef=step / 10)
        arrays[step] = [array.copy() for array in state.arrays()]
    assert not same(arrays[2], arrays[4])
    return tmp_path / "run", arrays


def test_round_trip(saved):
    folder, arrays = saved
    state = State(folder)
    assert not same(state.arrays(), arrays[4])
    assert state.keeper.restore() == 4
    assert same(state.arrays(), arrays[4])
    assert state.keeper.scalars == {"kl_coef": 0.4}
    assert int(state.optimizer.iterations.numpy()) == 2


def test_nothing_saved_is_step_0(tmp_path):
    state = State(tmp_path / "run")
    before = [array.copy() for array in state.arrays()]
    assert state.keeper.restore() == 0
    assert same(state.arrays(), before)
    assert state.keeper.scalars == {"kl_coef": 0.05}


def test_only_the_last_ones_are_kept(tmp_path):
    state = State(tmp_path / "run", keep=2)
    for step in (9, 10, 100):
        state.keeper.save(step, kl_coef=0.0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(
        ["checkpoint"]
        + [f"ckpt-{step}.{end}" for step in (10, 100) for end in ("index", "json", "data-00000-of-00001")]
    )
    assert State(tmp_path / "run").keeper.restore() == 100  # the newest by number, not by name


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}
FILES = {"data": "data-00000-of-00001", "index": "index"}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_one_before(saved, damage, file):
    folder, arrays = saved
    DAMAGE[damage](folder / f"ckpt-4.{FILES[file]}")
    state = State(folder)
    assert state.keeper.restore() == 2
    assert same(state.arrays(), arrays[2])
    assert state.keeper.scalars == {"kl_coef": 0.2}
    # The run goes on, and saves over the damage.
    state.step()
    state.keeper.save(4, kl_coef=0.7)
    again = State(folder)
    assert again.keeper.restore() == 4
    assert same(again.arrays(), state.arrays())


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_readable_one_is_an_error(saved, damage):
    folder, _ = saved
    for step in (2, 4):
        DAMAGE[damage](folder / f"ckpt-{step}.{FILES['index' if damage == 'missing' else 'data']}")
    with pytest.raises(UserError, match=r"no checkpoint in .*run' can be read; remove the folder") as error:
        State(folder).keeper.restore()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_manifest_falls_back_too(saved, damage):
    folder, arrays = saved
    DAMAGE[damage](folder / "ckpt-4.json")
    state = State(folder)
    assert state.keeper.restore() == 2
    assert same(state.arrays(), arrays[2])


def test_the_state_file_is_not_needed(saved):
    folder, arrays = saved
    (folder / "checkpoint").unlink()
    state = State(folder)
    assert state.keeper.restore() == 4
    assert same(state.arrays(), arrays[4])


@pytest.mark.parametrize(
    ("sizes", "variable", "there", "here"),
    [
        ({"width": 5}, "hidden_0/kernel", "[3, 4]", "[3, 5]"),
        ({"layers": 2}, "hidden_1/kernel", "none", "[4, 4]"),
    ],
)
def test_another_architecture_is_refused(saved, sizes, variable, there, here):
    folder, _ = saved
    state = State(folder, **sizes)
    before = [array.copy() for array in state.arrays()]
    with pytest.raises(UserError) as error:
        state.keeper.restore()
    assert f"variable {variable} has shape {there} there and {here} here" in str(error.value)
    assert "--workdir" in str(error.value) and "\n" not in str(error.value)
    assert same(state.arrays(), before)


def test_the_manifest_is_of_its_own_checkpoint(saved):
    folder, _ = saved
    expected = {"hidden_0/kernel": [3, 4], "hidden_0/bias": [4], "head/kernel": [4, 1], "head/bias": [1]}
    for step in (2, 4):
        assert json.loads((folder / f"ckpt-{step}.json").read_text()) == expected
    # A save of another model that was killed half way leaves a manifest, and no checkpoint: the others still count.
    (folder / "ckpt-6.json").write_text(json.dumps({"else": [1]}))
    (folder / "ckpt-6.data-00000-of-00001").write_bytes(b"half")
    assert State(folder).keeper.restore() == 4


def test_leftovers_of_a_killed_save_are_swept(saved):
    folder, _ = saved
    for name in ("ckpt-6_temp", "ckpt-6_temp_0a1b"):
        (folder / name).mkdir()
        (folder / name / "part-00000").write_bytes(b"x" * 100)
    state = State(folder)
    assert state.keeper.restore() == 4
    assert not list(folder.glob("*_temp*"))
    state.keeper.save(6, kl_coef=0.0)
    assert State(folder).keeper.restore() == 6


def test_a_killed_first_save_starts_anew(tmp_path):
    folder = tmp_path / "run"
    State(folder).keeper.save(2, kl_coef=0.0)
    half = tmp_path / "half"
    half.mkdir()
    for name in ("ckpt-2.data-00000-of-00001", "ckpt-2.json"):
        shutil.copy(folder / name, half)
    assert State(half).keeper.restore() == 0

"""Checkpoints: what is saved comes back, damage falls back to the one before, another architecture is refused."""

import errno
import hashlib
import json
import os
import re
import resource
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.training import checkpoint
from tfppo.training.checkpoint import CheckpointKeeper, digest, weights_digest


def make_model(width=4, layers=1):
    inputs = keras.Input([3])
    hidden = inputs
    for number in range(layers):
        hidden = keras.layers.Dense(width, name=f"hidden_{number}")(hidden)
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(hidden))


class State:
    """A model with an optimizer that has moved, and their keeper."""

    def __init__(self, folder, keep=3, identity=None, extra=None, log=None, save_every=1, **sizes):
        self.model = make_model(**sizes)
        self.optimizer = keras.optimizers.Adam(0.1)
        self.optimizer.build(self.model.trainable_variables)
        self.keeper = CheckpointKeeper(
            folder,
            model=self.model,
            optimizer=self.optimizer,
            scalars={"kl_coef": 0.05},
            keep=keep,
            extras={"extra": extra} if extra else None,
            identity=identity,
            log=log,
            save_every=save_every,
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
    with pytest.raises(UserError, match=r"no checkpoint in .*run' can be read; put a copy of one back") as error:
        State(folder).keeper.restore()
    assert "\n" not in str(error.value)


def replace_by(text):
    return lambda path: path.write_text(text)


MANIFEST_DAMAGE = {
    **{name: DAMAGE[name] for name in ("truncated", "empty", "missing")},
    **{
        text: replace_by(text) for text in ("null", "[]", "{}", '{"variables": {}}', '{"variables": 1, "identity": {}}')
    },
    "bytes": lambda path: path.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", MANIFEST_DAMAGE)
def test_a_damaged_manifest_falls_back_too(saved, damage, warnings):
    folder, arrays = saved
    MANIFEST_DAMAGE[damage](folder / "ckpt-4.json")
    state = State(folder)
    assert state.keeper.restore() == 2
    assert same(state.arrays(), arrays[2])
    first, second = warnings
    assert "ckpt-4 cannot be read" in first and "\n" not in first
    assert second == f"going on from {folder / 'ckpt-2'}"


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
        manifest = json.loads((folder / f"ckpt-{step}.json").read_text())
        assert manifest == {"variables": expected, "identity": {}}
    # A save of another model that was killed half way leaves a manifest, and no checkpoint: the others still count.
    (folder / "ckpt-6.json").write_text(json.dumps({"variables": {"else": [1]}, "identity": {}}))
    (folder / "ckpt-6.data-00000-of-00001").write_bytes(b"half")
    assert State(folder).keeper.restore() == 4


def test_extras_come_back(tmp_path):
    def make_extra():
        return LanguageModel(20, 2, 2, 8, 16, 8)  # its layers stand in a list

    extra = make_extra()
    expected = extra.get_weights()
    State(tmp_path / "run", extra=extra).keeper.save(1, kl_coef=0.0)
    extra = make_extra()
    assert not same(extra.get_weights(), expected)
    assert State(tmp_path / "run", extra=extra).keeper.restore() == 1
    assert same(extra.get_weights(), expected)


def test_what_the_state_goes_with_is_compared(tmp_path):
    identity = {"tokenizer": "a", "reference": "b"}
    state = State(tmp_path / "run", identity=identity)
    state.step()
    state.keeper.save(1, kl_coef=0.0)
    assert json.loads((tmp_path / "run" / "ckpt-1.json").read_text())["identity"] == identity
    assert State(tmp_path / "run", identity=dict(identity)).keeper.restore() == 1
    for name in identity:
        other = State(tmp_path / "run", identity={**identity, name: "c"})
        before = [array.copy() for array in other.arrays()]
        with pytest.raises(UserError, match=f"goes with another {name}, .* another --workdir") as error:
            other.keeper.restore()
        assert "\n" not in str(error.value) and same(other.arrays(), before)


def test_every_layer_counts(tmp_path):
    """The layers of a Transformer have variables of the same paths."""

    def keeper(num_layers):
        model = LanguageModel(20, num_layers, 2, 8, 16, 8)
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)
        return CheckpointKeeper(tmp_path / "run", model=model, optimizer=optimizer, scalars={}, keep=1)

    keeper(2).save(1)
    assert len(json.loads((tmp_path / "run" / "ckpt-1.json").read_text())["variables"]) == 28
    assert keeper(2).restore() == 1
    for other, there, here in ((3, "none", r"\[8\]"), (1, r"\[8\]", "none")):
        with pytest.raises(UserError, match=f"another architecture: .*norm/.* has shape {there} there and {here} here"):
            keeper(other).restore()


def test_digests_tell_weights_apart():
    first, second = make_model(), make_model()
    second.set_weights(first.get_weights())
    assert weights_digest(first) == weights_digest(second)
    weights = second.get_weights()
    weights[-1] = weights[-1] + np.float32(1e-6)
    second.set_weights(weights)
    assert weights_digest(first) != weights_digest(second)
    assert digest(b"ab", b"c") != digest(b"a", b"bc")
    assert digest(b"ab", memoryview(np.array([[99, 100]], np.uint8))) == hashlib.sha256(b"ab\0cd").hexdigest()[:16]


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


NAMES = ["a[1]", "b*c", "q?", "{a,b}", "back\\slash", "sp ace", "дом", "-x", "~"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name(tmp_path, name):
    folder, neighbour = tmp_path / name / "run", tmp_path / "bxc" / "run"
    neighbour.mkdir(parents=True)
    other = neighbour / "ckpt-1.index"
    other.touch()
    state = State(folder, keep=1)
    for step in (1, 2):
        state.step()
        state.keeper.save(step, kl_coef=step / 10)
    assert sorted(path.suffix for path in folder.glob("ckpt-*")) == [".data-00000-of-00001", ".index", ".json"]
    assert other.exists()  # what matches the name, taken for a pattern, stays
    again = State(folder)
    assert again.keeper.restore() == 2
    assert same(again.arrays(), state.arrays())


def test_a_checkpoint_of_tensorflows_own_manager_comes_back(tmp_path):
    """As it was written before: with a counter of saves, and the state file of TensorFlow."""
    state = State(tmp_path / "run")
    state.step()
    state.keeper.save(3, kl_coef=0.5)
    (tmp_path / "run" / "ckpt-3.index").unlink()
    manager = tf.train.CheckpointManager(state.keeper._checkpoint, str(tmp_path / "run"), max_to_keep=2)
    manager.save(checkpoint_number=3)
    again = State(tmp_path / "run")
    assert again.keeper.restore() == 3 and again.keeper.scalars == {"kl_coef": 0.5}
    assert same(again.arrays(), state.arrays())


def test_tensorflows_own_tools_find_the_newest(saved):
    assert tf.train.latest_checkpoint(str(saved[0])) == str(saved[0] / "ckpt-4")


@pytest.mark.parametrize(
    ("there", "here"), [("no part 'extra', this run has one", True), ("a part 'extra', this run has not", False)]
)
def test_a_good_checkpoint_with_other_parts_is_not_called_damaged(tmp_path, there, here):
    def extra(wanted):
        return LanguageModel(20, 1, 2, 8, 16, 8) if wanted else None

    State(tmp_path / "run", extra=extra(not here)).keeper.save(1, kl_coef=0.0)
    with pytest.raises(UserError, match=f"the checkpoint in '.*' has {there}; go on with the same settings"):
        State(tmp_path / "run", extra=extra(here)).keeper.restore()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_saved(saved, value):
    folder, arrays = saved
    state = State(folder)
    state.model.variables[1].assign(np.full_like(state.model.variables[1], value))
    with pytest.raises(
        UserError, match="checkpoint of step 6 is not saved: its weights .*hidden_0/bias are not finite"
    ):
        state.keeper.save(6, kl_coef=0.0)
    again = State(folder)
    assert again.keeper.restore() == 4 and same(again.arrays(), arrays[4])


def write_log(path, steps):
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, steps + 1)))
    return path


@pytest.mark.parametrize("emptied", [True, False], ids=["emptied", "removed"])
@pytest.mark.parametrize("steps", [4, 5])
def test_a_run_that_lost_its_checkpoints_does_not_begin_anew(saved, emptied, steps):
    folder, _ = saved
    log = write_log(folder.parent / "ppo.jsonl", steps)
    shutil.rmtree(folder)
    if emptied:
        folder.mkdir()
    with pytest.raises(UserError) as error:
        State(folder, log=log, save_every=4).keeper.restore()
    assert str(error.value) == (
        f"'{folder}' holds no checkpoint, but '{log}' has {steps} steps of an earlier run; put the checkpoints back, "
        f"choose another --workdir, or move ppo.jsonl and ppo/ away to start anew here"
    )
    log.unlink()
    assert State(folder, log=log, save_every=4).keeper.restore() == 0


def test_steps_that_were_never_saved_are_run_again_and_that_is_said(tmp_path, warnings):
    log = write_log(tmp_path / "ppo.jsonl", 3)
    assert State(tmp_path / "run", log=log, save_every=4).keeper.restore() == 0
    assert warnings == [f"{log}: none of its 3 steps was saved; they are run again"]


@pytest.mark.parametrize(
    "left",
    [["ckpt-4.json"], ["ckpt-4.json", "ckpt-4.json.0a1b2c3d.tmp"], ["ckpt-4.json.tmp"], ["ckpt-4.json", "ckpt-4_temp"]],
)
def test_a_first_save_that_was_killed_is_run_again(tmp_path, warnings, left):
    log = write_log(tmp_path / "ppo.jsonl", 4)
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text("{")
    assert State(tmp_path / "run", log=log, save_every=4).keeper.restore() == 0
    assert len(warnings) == 1
    assert not [path.name for path in (tmp_path / "run").iterdir() if "tmp" in path.name or "temp" in path.name]


def test_a_checkpoint_is_on_the_disk_before_an_older_one_goes(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    state = State(folder, keep=1)
    state.keeper.save(1, kl_coef=0.0)
    synced, left = set(), []
    sync, unlink = os.fsync, os.unlink

    def noting_sync(descriptor):
        synced.add(re.sub(r"\.[0-9a-f]{8}\.tmp$", ".tmp", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def noting_unlink(path, *args, **kwargs):
        left.append((os.path.basename(path), set(synced)))
        unlink(path, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "unlink", noting_unlink)
    state.keeper.save(2, kl_coef=0.0)
    assert sorted(name for name, _ in left) == ["ckpt-1.data-00000-of-00001", "ckpt-1.index", "ckpt-1.json"]
    ends = ("/ckpt-2.data-00000-of-00001", "/ckpt-2.index", "/ckpt-2.json.tmp", "/checkpoint.tmp", "")
    assert all({f"{folder}{end}" for end in ends} <= before for _, before in left)


def full(monkeypatch, of):
    """Fills the disk when the part `of` a save is written."""
    if of == "tensors":
        monkeypatch.setattr(
            tf.train.Checkpoint,
            "write",
            raising(tf.errors.ResourceExhaustedError(None, None, "run/ckpt-6_temp/part-0; No space left on device")),
        )
    else:
        monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))


def raising(error):
    def function(*args, **kwargs):
        raise error

    return function


DENIED, NO_MEMORY = "Permission denied; let this user read it", "Cannot allocate memory; free some memory"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (tf.errors.OpError(None, None, "run/ckpt-4.index; Permission denied", tf.errors.UNKNOWN), DENIED),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), NO_MEMORY),
        (MemoryError(), NO_MEMORY),
        (
            tf.errors.ResourceExhaustedError(None, None, "ckpt-4.index; Too many open files [Op:RestoreV2]"),
            "Too many open files; raise the limit on open files (ulimit -n)",
        ),
    ],
    ids=str,
)
def test_a_checkpoint_that_could_not_be_read_is_not_called_damaged(saved, monkeypatch, error, line):
    """The texts are TensorFlow's own. Going on from the one before would remove it."""
    folder, arrays = saved
    with monkeypatch.context() as patch, pytest.raises(UserError) as raised:
        patch.setattr(tf.train.Checkpoint, "restore", raising(error))
        State(folder).keeper.restore()
    assert str(raised.value) == f"'{folder}/ckpt-4' cannot be read: {line}; it is as it was"
    again = State(folder)
    assert again.keeper.restore() == 4 and same(again.arrays(), arrays[4])


def test_a_manifest_that_could_not_be_read_is_not_called_damaged(saved, monkeypatch):
    folder, _ = saved
    with monkeypatch.context() as patch, pytest.raises(UserError, match=f"ckpt-4' cannot be read: {DENIED}; it is as"):
        patch.setattr(checkpoint, "_read_manifest", raising(PermissionError(errno.EACCES, "Permission denied")))
        State(folder).keeper.restore()


@pytest.mark.parametrize("of", ["tensors", "manifest"])
def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(saved, monkeypatch, of):
    folder, arrays = saved
    state = State(folder)
    assert state.keeper.restore() == 4
    state.step()
    (folder / "ckpt-6_temp").mkdir()
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        full(patch, of)
        state.keeper.save(6, kl_coef=0.0)
    assert str(error.value) == (
        f"the checkpoint of step 6 in '{folder}' cannot be written: No space left on device; free some space on that "
        f"disk; the one of step 4 is intact, and the same command again goes on from there"
    )
    assert not (folder / "ckpt-6_temp").exists()
    again = State(folder)
    assert again.keeper.restore() == 4 and same(again.arrays(), arrays[4])


@pytest.mark.parametrize("of", ["tensors", "manifest"])
def test_a_first_save_that_found_the_disk_full_is_run_again(tmp_path, monkeypatch, of):
    log = write_log(tmp_path / "ppo.jsonl", 4)
    state = State(tmp_path / "run", log=log, save_every=4)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device"):
        full(patch, of)
        state.keeper.save(4, kl_coef=0.0)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["ckpt-4.json"]
    assert State(tmp_path / "run", log=log, save_every=4).keeper.restore() == 0


def test_a_save_is_told(tmp_path):
    state, told = State(tmp_path / "run"), []
    state.keeper.on_save = lambda step: told.append((step, (tmp_path / "run" / f"ckpt-{step}.index").exists()))
    state.keeper.save(7, kl_coef=0.0)
    assert told == [(7, True)]


def test_a_limit_on_the_size_of_files_is_one_line(saved):
    """A real limit, and TensorFlow's own writing."""
    folder, arrays = saved
    state = State(folder, width=4)
    state.keeper.restore()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            UserError, match=r"step 6 in .* cannot be written: File too large; raise .*; the one of step 4"
        ):
            state.keeper.save(6, kl_coef=0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = State(folder)
    assert again.keeper.restore() == 4 and same(again.arrays(), arrays[4])


def test_files_of_other_names_in_the_folder_are_left_alone(saved):
    folder, _ = saved
    for name in ("ckpt-best.index", "notes.txt"):
        (folder / name).write_text("mine")
    state = State(folder, keep=1)
    assert state.keeper.restore() == 4
    state.keeper.save(6, kl_coef=0.0)
    assert {"ckpt-best.index", "notes.txt", "ckpt-6.index"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "ckpt-4.index").exists()

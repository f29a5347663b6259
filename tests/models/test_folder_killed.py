"""A model folder that is being replaced holds the old or the new model, whenever the process is killed."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.models.folder import check_model, load_language_model, model_exists, save_model
from tfppo.models.language_model import LanguageModel


class Killed(BaseException):
    """Stands for the end of the process; not an Exception, so that no handler goes on from it."""


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([])


@pytest.fixture(scope="module")
def models():
    """A model by the value of all its weights."""
    made = {value: LanguageModel(258, 1, 1, 4, 4, 4) for value in (1.0, 2.0, 3.0)}
    for value, model in made.items():
        model.set_weights([np.full(weight.shape, value) for weight in model.weights])
    return made


def value_in(folder) -> float:
    """Which of the models a folder holds."""
    weights = load_language_model(folder)[0].get_weights()
    (value,) = {float(number) for weight in weights for number in weight.flat}
    return value


class Kill:
    """Kills the process at one step of those that rename or remove something: before it, or in its middle."""

    def __init__(self, monkeypatch, at, half):
        self.at, self.half, self.steps = at, half, 0
        self.remove = shutil.rmtree
        monkeypatch.setattr(os, "rename", self.killing(os.rename))
        monkeypatch.setattr(shutil, "rmtree", self.killing(shutil.rmtree))

    def killing(self, step):
        def killed(path, *args, **kwargs):
            self.steps += 1
            if self.steps == self.at:
                if self.half and step is self.remove and Path(path).is_dir():
                    self.remove(Path(path) / "tokenizer", ignore_errors=True)
                raise Killed
            return step(path, *args, **kwargs)

        return killed


def save_and_be_killed(model, tokenizer, folder, at, half=False) -> bool:
    """Whether the process was killed; False where there were fewer than `at` steps."""
    with pytest.MonkeyPatch.context() as patch:
        Kill(patch, at, half)
        try:
            save_model(model, tokenizer, folder)
        except Killed:
            return True
    return False


def kill_everywhere(model, tokenizer, folder):
    """Saves and is killed at every step in turn, with the folder put back between; yields after each kill."""
    start = folder.parent.with_name("start")
    shutil.copytree(folder.parent, start)
    for half in (False, True):
        at = 1
        while save_and_be_killed(model, tokenizer, folder, at, half):
            yield
            shutil.rmtree(folder.parent)
            shutil.copytree(start, folder.parent)
            at += 1
        assert at > 3  # two renames and a removal at the least
        shutil.rmtree(folder.parent)
        shutil.copytree(start, folder.parent)


@pytest.fixture
def folder(models, tokenizer, tmp_path):
    save_model(models[1.0], tokenizer, tmp_path / "run" / "model")
    return tmp_path / "run" / "model"


def test_a_kill_at_any_step_leaves_the_old_or_the_new_model(models, tokenizer, folder):
    found = []
    for _ in kill_everywhere(models[2.0], tokenizer, folder):
        found.append(value_in(folder))
        save_model(models[3.0], tokenizer, folder)
        assert value_in(folder) == 3.0
        assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert set(found) == {1.0, 2.0}


@pytest.mark.parametrize("look", [model_exists, lambda folder: check_model(folder, "tfppo train-lm") or True])
def test_whoever_looks_for_a_model_finds_it_after_a_kill(models, tokenizer, folder, look):
    for _ in kill_everywhere(models[2.0], tokenizer, folder):
        assert look(folder)


def test_a_second_kill_while_the_first_is_mended_loses_nothing(models, tokenizer, folder):
    found = []
    for _ in kill_everywhere(models[2.0], tokenizer, folder):
        if folder.exists():
            continue  # as after a save that was not killed, which the test above kills
        middle = folder.parent.with_name("middle")
        shutil.copytree(folder.parent, middle)
        at = 1
        while save_and_be_killed(models[3.0], tokenizer, folder, at):
            found.append(value_in(folder))
            shutil.rmtree(folder.parent)
            shutil.copytree(middle, folder.parent)
            at += 1
        shutil.rmtree(middle)
    assert set(found) == {2.0, 3.0}


def kill(*args):
    raise Killed


def test_a_first_save_that_is_killed_leaves_no_model(models, tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    monkeypatch.setattr(os, "rename", kill)
    with pytest.raises(Killed):
        save_model(models[1.0], tokenizer, folder)
    assert (tmp_path / "model.saving" / "model.keras").is_file()
    assert not model_exists(folder)
    with pytest.raises(UserError, match="there is no model in .*model.keras is missing"):
        load_language_model(folder)


def test_the_new_model_is_on_the_disk_before_it_gets_its_name(models, tokenizer, folder, monkeypatch):
    synced, at_first_rename = set(), []
    sync, rename = os.fsync, os.rename

    def noting_sync(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def noting_rename(source, target):
        at_first_rename.append(set(synced))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(os, "rename", noting_rename)
    save_model(models[2.0], tokenizer, folder)
    fresh = folder.with_name("model.saving")
    names = (".", "model.keras", "tokenizer", "tokenizer/merges.txt", "tokenizer/vocabulary.json")
    assert {str(fresh / name) for name in names} <= at_first_rename[0]
    assert str(folder.parent) in synced


def test_a_swap_that_cannot_be_finished_is_told(folder, monkeypatch):
    shutil.copytree(folder, folder.with_name("model.old"))
    folder.rename(folder.with_name("model.saving"))

    def refuse(source, target):
        raise PermissionError(13, "Permission denied", str(source))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(UserError, match="replaced .*model.saving.* cannot be renamed: Permission denied"):
        load_language_model(folder)


@pytest.mark.parametrize("by", ["reader", "writer"])
def test_another_process_may_finish_the_swap_first(models, tokenizer, folder, monkeypatch, by):
    rename = os.rename

    def overtaken(source, target):
        rename(source, target)
        if source == folder.with_name("model.saving"):
            raise FileNotFoundError(2, "No such file or directory", str(source))

    if by == "reader":
        next(None for _ in kill_everywhere(models[2.0], tokenizer, folder) if not folder.exists())
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", overtaken)
        if by == "writer":
            save_model(models[2.0], tokenizer, folder)
        assert value_in(folder) == 2.0


def test_what_a_killed_save_left_is_no_model_where_the_folder_was_removed(models, tokenizer, folder, monkeypatch):
    shutil.copytree(folder, folder.with_name("model.old"))
    shutil.rmtree(folder)
    assert not model_exists(folder)
    monkeypatch.setattr(Tokenizer, "save", kill)
    with pytest.raises(Killed):
        save_model(models[2.0], tokenizer, folder)
    assert folder.with_name("model.saving").exists() and not model_exists(folder)


def test_a_folder_without_a_name_of_its_own_can_be_loaded(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert value_in(".") == 1.0


def test_a_full_disk_is_one_line_and_leaves_the_old_model(models, tokenizer, folder, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(Tokenizer, "save", full)
        save_model(models[2.0], tokenizer, folder)
    assert str(error.value) == (
        f"the model in '{folder}' cannot be written: No space left on device; free some space on that disk; the model "
        "that was there before is intact"
    )
    assert value_in(folder) == 1.0 and [path.name for path in folder.parent.iterdir()] == ["model"]

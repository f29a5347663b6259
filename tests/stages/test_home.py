"""A leading ~ is the home directory wherever a path is named: a shell leaves the one of --flag=~/name as it is."""

import json
import zipfile

import pytest
from config_cases import configured

from tfppo.errors import UserError
from tfppo.models.folder import check_model, language_model_sizes, model_exists, read_about
from tfppo.stages.overrides import resolve_config
from tfppo.stages.rewards import check_rewards
from tfppo.stages.workdir import language_model_folder, model_folder


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory with a folder that looks like a model's, and a config."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    with zipfile.ZipFile(tmp_path / "model" / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"hidden_dim": 8}}))
    (tmp_path / "model" / "about.json").write_text('{"score": 1}')
    (tmp_path / "mine.py").touch()
    return tmp_path


def test_models_and_configs_of_the_home_directory(home):
    assert language_model_folder(configured(language_model="~/model"), home / "run") == home / "model"
    assert model_folder(home / "run", "~/model") == home / "model"
    assert model_exists("~/model") and read_about("~/model") == {"score": 1}
    assert language_model_sizes("~/model") == {"hidden_dim": 8}
    check_model("~/model", "")
    assert resolve_config(["tool", "--config=~/mine.py"]) == (["tool", f"--config={home}/mine.py"], f"{home}/mine.py")


def test_a_reward_of_a_model_in_the_home_directory(home):
    check_rewards(configured(reward__functions=("likelihood:~/model",)), home / "run")
    with pytest.raises(UserError, match=f"there is no model in '{home}/other'"):
        check_rewards(configured(reward__functions=("likelihood:~/other",)), home / "run")

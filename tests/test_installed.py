"""Installed with pip and not editable, tfppo is all there: the command, the configs by name, the C++ sources."""

import os
import shutil
import subprocess
import sys

import pytest
from binaries import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that `pip install .` filled, from a copy of the checkout: pip leaves build files where it builds."""
    folder = tmp_path_factory.mktemp("installed")
    source, target = folder / "source", folder / "target"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("tfppo", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-compile"]
    pip += ["--disable-pip-version-check", f"--target={target}", str(source)]
    done = subprocess.run(pip, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def tfppo(installed, tmp_path_factory):
    """Runs the installed command, far from the checkout."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def run(*arguments):
        command = [str(installed / "bin" / "tfppo"), *arguments]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)

    return run


def test_it_holds_every_source_and_every_config(installed):
    def files(folder):
        paths = (path.relative_to(folder) for path in folder.rglob("*.*"))
        return {path for path in paths if path.suffix in (".py", ".cc", ".h")}

    assert len([path for path in files(ROOT / "tfppo") if path.suffix == ".cc"]) > 5
    assert files(ROOT / "tfppo") <= files(installed / "tfppo")
    assert files(ROOT / "configs") == files(installed / "tfppo" / "configs")
    assert not (installed / "configs").exists()  # a name that others may want


def test_configs_go_by_name(tfppo):
    done = tfppo("train-ppo", "--config=trl", "--config.ppo.kl_coef=0.25", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--config.ppo.total_episodes=1000000 " in done.stdout  # of the recipe
    assert "--config.ppo.kl_coef=0.25 " in done.stdout
    assert "    tfppo train-ppo --config=movie_snippets" in done.stdout


def test_a_near_miss_of_a_config_is_told(tfppo):
    done = tfppo("train-ppo", "--config=configs/trlx.py", "--workdir=x")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --config names no file: 'configs/trlx.py'; the configs that come along are")
    assert done.stderr.endswith("trl; did you mean --config=trl?\n")

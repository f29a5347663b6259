"""Where compiled programs are kept."""

import os

import pytest

from tfppo.computation.kept_programs import keep_programs


@pytest.fixture(autouse=True)
def variables(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_cuda_data_dir=/usr/local/cuda")
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)


def gpus(tmp_path, *models):
    for number, model in enumerate(models):
        (tmp_path / str(number)).mkdir(parents=True)
        (tmp_path / str(number) / "information").write_text(f"Model: {model}\n")
    return tmp_path


def folder_of(flags):
    return flags.partition("--tf_xla_persistent_cache_directory=")[2]


def test_flags_of_the_environment_stay_and_another_card_has_another_folder(tmp_path, monkeypatch):
    kept = {}
    for name, models in {"none": (), "one": ("H100",), "other": ("A100",)}.items():
        monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
        keep_programs(gpus(tmp_path / name, *models))
        kept[name] = folder_of(os.environ["TF_XLA_FLAGS"])
        autotuned = "--xla_gpu_per_fusion_autotune_cache_dir" in os.environ["XLA_FLAGS"]
        assert autotuned is bool(models) and os.environ["XLA_FLAGS"].startswith("--xla_gpu_cuda_data_dir=")
        monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_cuda_data_dir=/usr/local/cuda")
    assert len(set(kept.values())) == 3
    assert all(folder.startswith(f"{tmp_path}/cache/tfppo/programs/2.21") for folder in kept.values())


def test_a_folder_is_of_a_kind_of_card_and_of_how_programs_are_compiled(tmp_path, monkeypatch):
    """TensorFlow's key of a program has neither its flags nor whether its operations are deterministic."""

    def kept(number, flags="", **how):
        (gpus(tmp_path / number, "H100") / "0" / "information").write_text(f"Model: H100\nGPU UUID: {number}\n")
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
        keep_programs(tmp_path / number, **how)
        return folder_of(os.environ["TF_XLA_FLAGS"])

    first = kept("first")
    assert kept("another") == first
    folders = {first, kept("third", deterministic=True), kept("fourth", "--xla_gpu_autotune_level=0")}
    assert len(folders) == 3


def test_a_folder_that_the_user_chose_is_taken(tmp_path, monkeypatch):
    chosen = "--tf_xla_persistent_cache_directory=/somewhere"
    monkeypatch.setenv("TF_XLA_FLAGS", chosen)
    keep_programs(tmp_path)
    assert os.environ["TF_XLA_FLAGS"] == chosen


def test_where_nothing_can_be_kept_a_run_goes_on(tmp_path, warnings):
    (tmp_path / "cache" / "tfppo").mkdir(parents=True)
    (tmp_path / "cache" / "tfppo" / "programs").touch()  # no folder
    keep_programs(tmp_path)
    assert len(warnings) == 1 and warnings[0].startswith("compiled programs are not kept: ")
    assert "TF_XLA_FLAGS" not in os.environ

"""A run is opened, and its models go by their names."""

import pytest

from tfppo.commands import evaluate
from tfppo.config import Config
from tfppo.errors import UserError
from tfppo.stages.workdir import model_folder, open_run


@pytest.fixture
def workdir(tmp_path):
    for name in ("lm", "policy"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "model.keras").touch()
    return tmp_path / "run"


def test_operations_are_deterministic_where_that_is_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("tensorflow.config.experimental.enable_op_determinism", lambda: asked.append(True))
    for number, wanted in enumerate((False, True)):
        open_run(Config(deterministic=wanted), tmp_path / str(number))
        assert len(asked) == number


@pytest.mark.parametrize("wanted", [True, False])
def test_float32_products_are_rounded_where_that_is_asked_for_alone(tmp_path, monkeypatch, wanted):
    allowed = []
    monkeypatch.setattr("tensorflow.config.experimental.enable_tensor_float_32_execution", allowed.append)
    open_run(Config(tensorfloat32=wanted), tmp_path / "run")
    assert allowed == [wanted]


def test_a_model_goes_by_its_name_or_its_folder(workdir, monkeypatch):
    assert model_folder(workdir, None) == model_folder(workdir, "policy") == workdir / "policy"
    monkeypatch.chdir(workdir.parent)
    (workdir.parent / "lm").mkdir()  # which holds no model
    assert model_folder(workdir, "lm") == workdir / "lm"
    assert str(model_folder(workdir, "run/lm")) == "run/lm"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("policy_best", ": tfppo train-ppo keeps it where evaluation.every is above 0 .* held-out prompts"),
        ("policy_average", ": tfppo train-ppo keeps it where ppo.ema_decay is set"),
        ("polcy", ""),
    ],
)
def test_a_model_that_there_is_not(workdir, name, why):
    with pytest.raises(UserError) as error:
        model_folder(workdir, name)
    error.match(f"^there is no model in '{workdir}/{name}' .model.keras is missing.{why}; the models in ")
    error.match(f"'{workdir}': lm, policy$")


def test_a_folder_elsewhere_that_has_no_model(workdir, tmp_path):
    with pytest.raises(UserError, match=f"no model in '{tmp_path}/policy_best' .model.keras is missing.; the models"):
        model_folder(workdir, tmp_path / "policy_best")
    with pytest.raises(UserError, match=f"'{tmp_path}/policy' .*: tfppo train-ppo makes it; .*: none$"):
        model_folder(tmp_path, None)


def test_nothing_is_evaluated_where_the_model_is_missing(workdir, monkeypatch):
    class Flags:
        model = "policy_best"

    evaluated = []
    monkeypatch.setattr("tfppo.stages.evaluate.evaluate_model", lambda *args: evaluated.append(args))
    with pytest.raises(UserError, match="there is no model"):
        evaluate.main(Config(), workdir, Flags())
    (workdir / "policy" / "model.keras").unlink()
    Flags.model = None
    with pytest.raises(UserError, match="/policy' .*train-ppo makes it; .*: lm$"):
        evaluate.main(Config(), workdir, Flags())
    assert evaluated == []

"""The configuration as a tree of dataclasses: assignment, JSON, and where defaults stand."""

import ast
import dataclasses
import json

import pytest
from binaries import ROOT
from config_cases import configured

from tfppo.config import Config


def test_a_misspelt_field_cannot_be_assigned():
    with pytest.raises(AttributeError):
        Config().ppo.kl_coeff = 1.0


def test_json_round_trips():
    config = configured(
        seed=3, ppo__adaptive_kl_target=0.1, ppo__value_clip_range=None, data__data_dir="ä b", model__dropout=0.3
    )
    text = config.to_json()
    values = json.loads(text)
    assert (
        values["seed"] == 3 and values["ppo"]["adaptive_kl_target"] == 0.1 and values["ppo"]["value_clip_range"] is None
    )
    sections = {f.name: f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)}
    rebuilt = Config(**{name: sections[name](**v) if name in sections else v for name, v in values.items()})
    for name in ("functions", "weights"):  # JSON has no tuples
        setattr(rebuilt.reward, name, tuple(getattr(rebuilt.reward, name)))
    assert rebuilt == config
    assert rebuilt.to_json() == text
    assert len(sections) == 8


def test_defaults_stand_in_the_dataclasses_only():
    """No parameter named like a setting repeats its default where a part takes plain arguments: in a constructor."""
    names = {"num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "vocabulary_size"}
    names |= {f.name for f in dataclasses.fields(Config().ppo)} | {f.name for f in dataclasses.fields(Config().lm)}
    found = []
    for path in (ROOT / "tfppo").rglob("*.py"):
        if path.name in ("settings.py", "optimization.py"):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            arguments = function.args
            positional = arguments.posonlyargs + arguments.args
            pairs = list(zip(positional[::-1], arguments.defaults[::-1], strict=False))
            pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d]
            settings = [a for a, d in pairs if a.arg in names and not (isinstance(d, ast.Constant) and d.value is None)]
            found += [f"{path.name}: {function.name}({a.arg})" for a in settings]  # None is the absence of a setting
    # Of Keras, of a policy that is built from a language model, and of estimators that have no groups.
    allowed = {"dtype", "separate_critic", "group_size"}
    assert [one for one in found if one.rpartition("(")[2][:-1] not in allowed] == []

"""The configuration: every file of configs/ is valid, every rule names field, value and remedy."""

import ast
import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import pytest

from tfppo.config import Config, validate_ppo_sampling
from tfppo.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def configured(**settings):
    """A Config with `section__field=value` assigned, as flags assign it."""
    config = Config()
    for name, value in settings.items():
        *section, field = name.split("__")
        holder = getattr(config, section[0]) if section else config
        assert hasattr(holder, field), name
        setattr(holder, field, value)
    return config


def test_there_are_configs():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_config_file(path):
    module = load(path)
    config = module.get_config()
    assert type(config) is Config
    assert config.validate() is config
    assert "python tools/" in module.__doc__
    assert module.get_config() is not config  # overrides assign: they must not reach the next one


def test_defaults_are_valid():
    Config().validate()


# settings, the field that is named, its value as shown, and a word of the remedy
BAD = [
    ({"seed": -1}, "seed", "-1", "between 0 and"),
    ({"seed": 2**31}, "seed", "2147483648", "between 0 and"),
    ({"reward": "vader"}, "reward", "'vader'", "module:function"),
    ({"checkpoint_every": 0}, "checkpoint_every", "0", "above 0"),
    ({"keep_checkpoints": 0}, "keep_checkpoints", "0", "above 0"),
    ({"num_replicas": -1}, "num_replicas", "-1", "positive number"),
    ({"data__source": ""}, "data.source", "''", ".jsonl"),
    ({"data__min_prompt_tokens": 0}, "data.min_prompt_tokens", "0", "above 0"),
    ({"data__max_prompt_tokens": 0}, "data.max_prompt_tokens", "0", "above 0"),
    ({"data__min_prompt_tokens": 9}, "data.min_prompt_tokens", "9", "at most data.max_prompt_tokens 8"),
    ({"model__vocabulary_size": 257}, "model.vocabulary_size", "257", "at least 258"),
    ({"model__num_layers": 0}, "model.num_layers", "0", "above 0"),
    ({"model__num_heads": 0}, "model.num_heads", "0", "above 0"),
    ({"model__num_heads": 3}, "model.num_heads", "3", "divide model.hidden_dim 256"),
    ({"model__hidden_dim": 0}, "model.hidden_dim", "0", "above 0"),
    ({"model__intermediate_dim": 0}, "model.intermediate_dim", "0", "above 0"),
    ({"model__max_sequence_length": 0}, "model.max_sequence_length", "0", "above 0"),
    ({"model__dropout": 1.0}, "model.dropout", "1.0", "below 1"),
    ({"model__dropout": -0.1}, "model.dropout", "-0.1", "at least 0"),
    ({"lm__num_steps": 0}, "lm.num_steps", "0", "above 0"),
    ({"lm__batch_size": 0}, "lm.batch_size", "0", "above 0"),
    ({"lm__learning_rate": 0.0}, "lm.learning_rate", "0.0", "above 0"),
    ({"lm__learning_rate": math.nan}, "lm.learning_rate", "nan", "above 0"),
    ({"lm__eval_every": 0}, "lm.eval_every", "0", "above 0"),
    ({"lm__keep_checkpoints": 0}, "lm.keep_checkpoints", "0", "above 0"),
    ({"lm__warmup_steps": -1}, "lm.warmup_steps", "-1", "negative"),
    ({"lm__warmup_steps": 600}, "lm.warmup_steps", "600", "below lm.num_steps 600"),
    ({"lm__schedule": "step"}, "lm.schedule", "'step'", "cosine or linear"),
    ({"lm__max_grad_norm": -1.0}, "lm.max_grad_norm", "-1.0", "negative"),
    ({"lm__patience": -1}, "lm.patience", "-1", "negative"),
    ({"lm__weight_decay": -0.1}, "lm.weight_decay", "-0.1", "negative"),
    ({"lm__adam_beta2": 1.0}, "lm.adam_beta2", "1.0", "between 0 and 1"),
    ({"lm__dtype": "float16"}, "lm.dtype", "'float16'", "float32 or mixed_bfloat16"),
    ({"sampling__response_length": 0}, "sampling.response_length", "0", "above 0"),
    ({"sampling__temperature": -1.0}, "sampling.temperature", "-1.0", "negative"),
    ({"sampling__top_k": -1}, "sampling.top_k", "-1", "0 for off"),
    ({"sampling__top_p": 0.0}, "sampling.top_p", "0.0", "above 0"),
    ({"sampling__top_p": 1.5}, "sampling.top_p", "1.5", "at most 1"),
    ({"ppo__total_episodes": 63}, "ppo.total_episodes", "63", "at least ppo.rollout_batch_size 64"),
    ({"ppo__rollout_batch_size": 0}, "ppo.rollout_batch_size", "0", "above 0"),
    ({"ppo__ppo_epochs": 0}, "ppo.ppo_epochs", "0", "above 0"),
    ({"ppo__num_minibatches": 0}, "ppo.num_minibatches", "0", "above 0"),
    ({"ppo__num_minibatches": 5}, "ppo.num_minibatches", "5", "divide ppo.rollout_batch_size 64"),
    ({"ppo__accumulation_steps": 0}, "ppo.accumulation_steps", "0", "above 0"),
    ({"ppo__accumulation_steps": 3}, "ppo.accumulation_steps", "3", "divide the minibatch size 16"),
    ({"ppo__learning_rate": 0.0}, "ppo.learning_rate", "0.0", "above 0"),
    ({"ppo__clip_range": 0.0}, "ppo.clip_range", "0.0", "above 0"),
    ({"ppo__kl_horizon": 0}, "ppo.kl_horizon", "0", "above 0"),
    ({"ppo__adam_epsilon": 0.0}, "ppo.adam_epsilon", "0.0", "above 0"),
    ({"ppo__gamma": 1.1}, "ppo.gamma", "1.1", "between 0 and 1"),
    ({"ppo__gae_lambda": -0.1}, "ppo.gae_lambda", "-0.1", "between 0 and 1"),
    ({"ppo__value_coef": -0.1}, "ppo.value_coef", "-0.1", "negative"),
    ({"ppo__kl_coef": -0.1}, "ppo.kl_coef", "-0.1", "negative"),
    ({"ppo__kl_coef": math.nan}, "ppo.kl_coef", "nan", "negative"),
    ({"ppo__max_grad_norm": -0.1}, "ppo.max_grad_norm", "-0.1", "negative"),
    ({"ppo__value_clip_range": 0.0}, "ppo.value_clip_range", "0.0", "None for off"),
    ({"ppo__kl_target": 0.0}, "ppo.kl_target", "0.0", "None for off"),
    ({"ppo__ratio_tolerance": -1.0}, "ppo.ratio_tolerance", "-1.0", "None for off"),
    ({"ppo__rollout_batch_size": 1, "ppo__num_minibatches": 1}, "ppo.rollout_batch_size", "1", "at least 2 episodes"),
    (
        {"ppo__rollout_batch_size": 4, "ppo__whiten_rewards": True},
        "ppo.rollout_batch_size",
        "4",
        "at least 8 episodes; raise it or set ppo.whiten_rewards=False",
    ),
    ({"ppo__dtype": "bfloat16"}, "ppo.dtype", "'bfloat16'", "float32 or mixed_bfloat16"),
    ({"evaluation__num_prompts": 0}, "evaluation.num_prompts", "0", "above 0"),
    ({"evaluation__batch_size": 0}, "evaluation.batch_size", "0", "above 0"),
    ({"evaluation__num_samples": 0}, "evaluation.num_samples", "0", "above 0"),
    ({"evaluation__samples_every": -1}, "evaluation.samples_every", "-1", "negative"),
    # One start token, 8 of the prompt, 56 of the response: 65 positions.
    ({"sampling__response_length": 56}, "model.max_sequence_length", "64", "need 65 positions"),
]


@pytest.mark.parametrize(("settings", "field", "value", "remedy"), BAD, ids=lambda item: str(item)[:60])
def test_bad_value(settings, field, value, remedy):
    with pytest.raises(UserError) as error:
        configured(**settings).validate()
    message = str(error.value)
    assert message.startswith(f"{field} is {value}; ")
    assert remedy in message.partition("; ")[2]
    assert "\n" not in message


@pytest.mark.parametrize(
    "settings",
    [
        {"sampling__response_length": 55},  # just fits
        {"model__num_heads": 8},
        {"ppo__num_minibatches": 64},
        {"ppo__rollout_batch_size": 1, "ppo__num_minibatches": 1, "ppo__whiten_advantages": False},
        {"ppo__rollout_batch_size": 8, "ppo__whiten_rewards": True},
        {"ppo__value_clip_range": None},
        {"ppo__kl_target": 6.0},
        {"sampling__temperature": 0.0},
        {"lm__warmup_steps": 0},
        {"lm__schedule": "linear"},
        {"seed": 2**31 - 1},
    ],
    ids=str,
)
def test_value_at_the_edge_is_good(settings):
    configured(**settings).validate()


@pytest.mark.parametrize("settings", [{"top_k": 5}, {"top_p": 0.9}, {"temperature": 0.0}], ids=str)
def test_ppo_samples_from_the_distribution_that_it_trains(settings):
    config = configured(**{f"sampling__{name}": value for name, value in settings.items()})
    config.validate()
    validate_ppo_sampling(Config().sampling)
    with pytest.raises(UserError, match=f"sampling.*{next(iter(settings))}.*PPO needs"):
        validate_ppo_sampling(config.sampling)


def test_a_misspelt_field_cannot_be_assigned():
    with pytest.raises(AttributeError):
        Config().ppo.kl_coeff = 1.0


def test_json_round_trips():
    config = configured(
        seed=3, ppo__kl_target=0.1, ppo__value_clip_range=None, data__data_dir="ä b", model__dropout=0.3
    )
    text = config.to_json()
    values = json.loads(text)
    assert values["seed"] == 3 and values["ppo"]["kl_target"] == 0.1 and values["ppo"]["value_clip_range"] is None
    sections = {f.name: f.type for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)}
    rebuilt = Config(**{name: sections[name](**v) if name in sections else v for name, v in values.items()})
    assert rebuilt == config
    assert rebuilt.to_json() == text
    assert len(sections) == 6


def test_defaults_stand_in_the_dataclasses_only():
    """No parameter named like a setting repeats its default where a part takes plain arguments: in a constructor."""
    names = {"num_layers", "num_heads", "hidden_dim", "intermediate_dim", "max_sequence_length", "vocabulary_size"}
    names |= {f.name for f in dataclasses.fields(Config().ppo)} | {f.name for f in dataclasses.fields(Config().lm)}
    found = []
    for path in (ROOT / "tfppo").rglob("*.py"):
        if path.name in ("config.py", "optimization.py"):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            arguments = function.args
            positional = arguments.posonlyargs + arguments.args
            pairs = list(zip(positional[::-1], arguments.defaults[::-1], strict=False))
            pairs += [(a, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d]
            found += [f"{path.name}: {function.name}({a.arg})" for a, _ in pairs if a.arg in names]
    allowed = {"dtype", "separate_critic"}  # of Keras, and of a policy that is built from a language model
    assert [one for one in found if one.rpartition("(")[2][:-1] not in allowed] == []

"""The texts of a run: which template writes chats, how long prompts may be, and what a language model cannot learn."""

import json

import pytest

from tfppo.config import Config
from tfppo.data import report
from tfppo.data.chat import BUILT_IN, ChatTemplate
from tfppo.data.splits import split_of
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError
from tfppo.stages.rewards import _examples, check_rewards
from tfppo.stages.texts import (
    check_responses,
    load_prompts,
    load_prompts_of_training,
    load_texts,
    load_written,
    template_of,
)

HH = ChatTemplate("hh", BUILT_IN["hh"])


def chat(number, answer="So."):
    return {"messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def config_of(tmp_path):
    def write(records, **data):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        config = Config()
        for name, value in {"source": str(path), **data}.items():
            setattr(config.data, name, value)
        return config

    return write


def prompts_of(config, tokenizer, positions):
    ((batch, _),) = load_prompts(config, "train", tokenizer, positions).batches(99)
    return [tokenizer.decode(row) for row in batch.prompt_ids.numpy()], batch.prompt_ids.shape[1]


def test_chats_are_written_by_the_template_of_the_model(config_of):
    tokenizer = Tokenizer([])
    tokenizer.chat_template = HH
    config = config_of([chat(number) for number in range(5)])
    texts, _ = prompts_of(config, tokenizer, 99)
    assert all(text.startswith("\n\nHuman: ") and text.endswith("?\n\nAssistant:") for text in texts)
    config.data.chat_template = "chatml"
    with pytest.raises(UserError, match="data.chat_template is 'chatml', but the model was trained with 'hh'"):
        prompts_of(config, tokenizer, 99)


def test_a_model_keeps_the_template_of_the_chats_that_it_is_trained_on(config_of):
    chats = config_of([chat(number) for number in range(5)], chat_template="hh")
    assert template_of(chats.data, load_texts(chats.data, "train"), None) == HH
    tokenizer = Tokenizer([])
    prompts_of(chats, tokenizer, 99)  # PPO of a model that knows no chats yet
    assert tokenizer.chat_template == HH
    plain = config_of([{"prompt": str(number), "response": "r"} for number in range(5)], chat_template="hh")
    assert template_of(plain.data, load_texts(plain.data, "train"), None) is None


def test_given_prompts_have_what_the_positions_leave(config_of, capsys):
    config = config_of([{"prompt": "p" * (n + 1)} for n in range(40)])  # one token a byte
    config.sampling.response_length = 10
    texts, length = prompts_of(config, Tokenizer([]), 41)  # a start token, 30 of a prompt, 10 of a response
    longest = max(map(len, texts))
    assert longest <= 30 and length == 1 + longest
    assert "prompts of more than the 30 tokens that model.max_sequence_length leaves" in capsys.readouterr().out


def test_prompts_alone_teach_a_language_model_nothing(config_of):
    data = config_of([{"prompt": str(n)} for n in range(5)]).data
    with pytest.raises(UserError, match="records.jsonl' has prompts and no responses; .* go to tfppo train-ppo"):
        check_responses(data, load_texts(data, "train"))
    for records in ([{"text": str(n)} for n in range(5)], [{"prompt": str(n), "output": "r"} for n in range(5)]):
        data = config_of(records).data
        check_responses(data, load_texts(data, "train"))


def test_held_out_prompts_have_the_length_of_training_and_none_are_needed(config_of, capsys):
    tokenizer = Tokenizer([])
    config = config_of([{"prompt": f"{number}?"} for number in range(40)])
    train, held_out = load_prompts_of_training(config, tokenizer, 99)
    assert train.length == held_out.length == 4 and 1 <= len(held_out) < len(train)  # a start token and 3 bytes
    capsys.readouterr()
    config.evaluation.every = 0
    train, held_out = load_prompts_of_training(config, tokenizer, 99)
    assert train.length == 4 and held_out is None and "evaluation" not in capsys.readouterr().out
    alone = config_of([{"prompt": "One?"}])
    train, held_out = load_prompts_of_training(alone, tokenizer, 99)
    assert len(train) == 1 and held_out is None
    assert capsys.readouterr().out.splitlines()[-1].startswith("no evaluation during training: source ")


def test_held_out_prompts_that_are_longer_than_those_of_training_are_kept(config_of, capsys):
    short = [f"{number}?" for number in range(40)]
    long = [f"{number}, and this is longer than all of training?" for number in range(200)]
    held_out = next(prompt for prompt in long if split_of(prompt) == "validation")
    others = [prompt for prompt in short if split_of(prompt) != "validation"]
    config = config_of([{"prompt": prompt} for prompt in (*others, held_out)])
    capsys.readouterr()
    train, kept = load_prompts_of_training(config, Tokenizer([]), 99)
    assert train.length == kept.length == 1 + len(held_out)
    ((batch, _),) = kept.batches(99)
    assert Tokenizer([]).decode(batch.prompt_ids.numpy()[0]) == held_out
    assert "evaluation" not in capsys.readouterr().out


def test_perplexity_is_of_texts_that_are_there(config_of):
    tokenizer = Tokenizer([])
    prompts = [{"prompt": f"{number}?"} for number in range(40)]
    assert load_written(config_of(prompts), "test", tokenizer, 16) is None
    texts = config_of([{"text": f"word {n}"} for n in range(40)])
    packed, num_words = load_written(texts, "test", tokenizer, 16)
    assert num_words > 0 and packed.weights.sum() > 0


def test_the_check_of_a_rewards_columns_reads_chats_as_the_model_does(config_of, tmp_path, capsys):
    tokenizer = Tokenizer([])
    tokenizer.chat_template = HH
    tokenizer.save(tmp_path / "lm" / "tokenizer")
    (tmp_path / "toy.py").write_text("def exact(prompts, responses, goal):\n    return [0.0] * len(responses)\n")
    config = config_of([{**chat(number), "goal": number} for number in range(5)])
    config.reward.functions = (f"{tmp_path / 'toy.py'}:exact",)
    check_rewards(config, tmp_path, "train")
    assert "chat template hh\n" in capsys.readouterr().out


def test_a_rewards_column_is_missed_in_each_split_that_is_scored_by_the_line(config_of, tmp_path):
    (tmp_path / "toy.py").write_text("def exact(prompts, responses, goal):\n    return [0.0] * len(responses)\n")
    records = [{"prompt": f"{number}?", "goal": number} for number in range(40)]
    config = config_of(records)
    config.reward.functions = (f"{tmp_path / 'toy.py'}:exact",)
    held_out = load_texts(config.data, "validation")[0].columns["goal"]
    check_rewards(config, tmp_path, "train", "validation")
    del records[held_out]["goal"]
    config.data = config_of(records).data
    check_rewards(config, tmp_path, "train")
    with pytest.raises(UserError, match=rf"lack \(the first: .*records.jsonl, line {held_out + 1}\); add it there"):
        check_rewards(config, tmp_path, "train", "validation")


def test_a_split_for_evaluation_in_training_may_be_missing(config_of, tmp_path):
    (tmp_path / "toy.py").write_text("def exact(prompts, responses, goal):\n    return [0.0] * len(responses)\n")
    config = config_of([{"prompt": "One?", "goal": 1}])
    config.reward.functions = (f"{tmp_path / 'toy.py'}:exact",)
    check_rewards(config, tmp_path, "train", "validation")
    with pytest.raises(UserError, match="no examples for split 'validation'"):
        check_rewards(config, tmp_path, "validation")


def test_a_field_that_goes_to_the_reward_is_not_called_unused(config_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "_told", set())
    (tmp_path / "toy.py").write_text(
        "def one(prompts, responses, topic): return [0.0] * len(responses)\n"
        "def two(prompts, responses, tokens, level=1): return [0.0] * len(responses)\n"
        "def rest(prompts, responses, **columns): return [0.0] * len(responses)\n"
    )
    records = [{"prompt": f"{n}?", "topic": "a", "level": n, "tokens": 1} for n in range(40)]
    toy, begin = f"{tmp_path / 'toy.py'}:", f"data: {tmp_path / 'records.jsonl'}: 40 records; prompt from 'prompt'; "
    expected = {
        (f"{toy}one",): "'topic' goes to the reward; unused fields: 'level', 'tokens'",
        (f"{toy}one", "likelihood:", f"{toy}two"): "'topic', 'level' go to the reward; unused fields: 'tokens'",
        (f"{toy}rest",): "'topic', 'level' go to the reward; unused fields: 'tokens'",
        ("https://host/score",): "'topic', 'level', 'tokens' go to the reward",
        ("likelihood:",): "unused fields: 'topic', 'level', 'tokens'",
    }
    for functions, fields in expected.items():
        report._told.clear()
        config = config_of(records)
        config.reward.functions = functions
        _examples(config, tmp_path, ["train", "validation"])  # of the check of the columns
        load_prompts_of_training(config, Tokenizer([]), 99)
        load_written(config, "test", Tokenizer([]), 16)
        assert capsys.readouterr().out == f"{begin}{fields}; no responses\n"
    report._told.clear()
    load_texts(config.data, "train")  # for a language model
    assert capsys.readouterr().out == f"{begin}unused fields: 'topic', 'level', 'tokens'; no responses\n"

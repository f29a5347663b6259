"""Chat templates: their text by hand, and where they are kept."""

import json

import pytest

from tfppo.config.choices import CHAT_TEMPLATES
from tfppo.data.chat import (
    BUILT_IN,
    CHATML,
    ChatTemplate,
    Message,
    choose_template,
    is_chat,
    load_template,
    read_messages,
)
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError

CHAT = [Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Why?"), Message("assistant", "So.")]
HH = ChatTemplate("hh", BUILT_IN["hh"])


def test_the_settings_name_the_built_in_templates():
    assert tuple(BUILT_IN) == CHAT_TEMPLATES


def test_chatml_by_hand():
    prompt, response = CHATML.split(CHAT, 3)
    assert prompt == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert response == "So."  # EOS follows
    assert CHATML.prompt(CHAT[:3]) == prompt
    assert CHATML.split(CHAT, 1) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "Hello.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.",
    )


def test_hh_writes_what_its_files_have():
    # The blank before the answer belongs to it, as tokens begin with blanks.
    assert HH.split(CHAT, 3) == ("\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:", " So.")


def test_alpaca_by_hand():
    template = ChatTemplate("alpaca", BUILT_IN["alpaca"])
    assert template.split(CHAT[:2], 1) == ("### Instruction:\nHi\n\n### Response:\n", "Hello.")


def test_a_role_without_a_text():
    with pytest.raises(UserError, match="chat template 'hh' has no role 'tool', only system, user, assistant"):
        HH.prompt([Message("tool", "42")])


def test_messages_by_role_and_content_or_as_sharegpt_writes_them():
    ours = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi", "name": "x"}]
    theirs = [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    expected = [Message("system", "Be kind."), Message("user", "Hi")]
    assert read_messages(ours, "messages", "f") == expected
    assert read_messages(theirs, "conversations", "f") == [*expected, Message("assistant", "Ho")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Hi", "f, line 2: field 'messages' is 'Hi': it must be a list of messages"),
        ([{"content": "Hi"}], "f, line 2: field 'messages' has a message without role"),
        ([{"role": "user"}], "f, line 2: field 'messages' has a message without content, {'role': 'user'}"),
        ([{"role": "user", "content": None}], "f, line 2: field 'messages' has a message without content"),
        ([{"role": "user", "content": 3}], "field 'messages' is 3: it must be a string"),
    ],
)
def test_what_is_no_message(value, message):
    with pytest.raises(UserError, match=message):
        read_messages(value, "messages", "f, line 2")


def test_what_is_a_chat():
    assert is_chat([{"role": "user"}]) and is_chat([]) and not is_chat(["a"]) and not is_chat("a") and not is_chat(None)


def test_the_model_decides_and_another_name_is_refused(tmp_path):
    assert choose_template("", None) == CHATML
    assert choose_template("hh", None) == HH == choose_template("", HH) == choose_template("hh", HH)
    with pytest.raises(UserError, match="data.chat_template is 'chatml', but the model was trained with 'hh'"):
        choose_template("chatml", HH)
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"roles": {"user": "Q: {content}\n", "assistant": "A: {content}\n"}}))
    assert choose_template(str(mine), None).split(CHAT[:2], 1) == ("Q: Hi\nA:", " Hello.")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not of the form"),
        ("[]", "is not of the form"),
        ('{"roles": {"user": "{content}"}}', "has no role 'assistant', only"),
        ('{"roles": {"assistant": "A:"}}', "role 'assistant' is 'A:': write {content} in it"),
        (None, r"cannot be read \(No such file"),
    ],
)
def test_a_template_that_is_none(tmp_path, content, message):
    path = tmp_path / "mine.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_template(path)


def test_a_template_is_kept_with_the_tokenizer(tmp_path):
    tokenizer = Tokenizer([])
    tokenizer.save(tmp_path / "plain")
    assert Tokenizer.load(tmp_path / "plain").chat_template is None
    tokenizer.chat_template = HH
    tokenizer.save(tmp_path / "chat")
    loaded = Tokenizer.load(tmp_path / "chat").chat_template
    assert loaded == HH and loaded.name == "hh"
    assert Tokenizer.load(tmp_path / "chat").digest() == Tokenizer.load(tmp_path / "plain").digest()

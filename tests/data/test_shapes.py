"""What a record is taken for, and what the line of a load says."""

import json

import pytest

from tfppo.data.chat import BUILT_IN, ChatTemplate
from tfppo.data.shapes import Example, recognise
from tfppo.data.sources import load_examples
from tfppo.errors import UserError

HH = ChatTemplate("hh", BUILT_IN["hh"])
ASKED = [{"role": "user", "content": "Why?"}]
ANSWER = [{"role": "assistant", "content": "So."}]
SHAREGPT = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
CHAT = ("\n\nHuman: Why?\n\nAssistant:", " So.")  # in the form of HH


def taken(record, names=("text", "prompt")):
    example, fields, has_response = recognise(record, "f, line 1", names, HH)
    assert example.columns == record and example.place == "f, line 1"
    return example.prompt, example.text, {name for _, name in fields}, has_response


@pytest.mark.parametrize(
    ("record", "prompt", "text", "unused"),
    [
        ({"text": "t", "id": 1}, None, "t", {"id"}),
        ({"prompt": "p", "response": "r"}, "p", "r", set()),
        ({"prompt": "p", "completion": "r", "text": "pr"}, "p", "r", {"text"}),
        ({"prompt": "p", "output": "r"}, "p", "r", set()),
        ({"prompt": "p", "answer": "r"}, "p", "r", set()),
        ({"prompt": "1+1=", "answer": 2}, "1+1=", "2", set()),  # the column stays the number
        ({"prompt": ASKED, "answer": 0.5}, CHAT[0], " 0.5", set()),
        ({"prompt": "p", "response": "r", "completion": "c"}, "p", "r", {"completion"}),
        ({"prompt": "p", "response": None, "completion": "c"}, "p", "c", {"response"}),
        ({"prompt": "p", "text": "r"}, "p", "r", set()),
        ({"answer": "42", "text": "t"}, None, "t", {"answer"}),
        ({"instruction": "Why?", "input": "", "output": "So."}, *CHAT, set()),
        ({"instruction": "Why?", "output": "So.", "text": "all"}, *CHAT, {"text"}),
        (
            {"instruction": "Why?", "input": "Oh", "output": "So.", "system": "Be."},
            "Be.\n\nHuman: Why?\nOh\n\nAssistant:",
            " So.",
            set(),
        ),
        ({"messages": ASKED + ANSWER, "id": 1}, *CHAT, {"id"}),
        ({"conversations": SHAREGPT}, *CHAT, set()),
        ({"prompt": ASKED + ANSWER}, *CHAT, set()),
        ({"prompt": ASKED, "completion": ANSWER}, *CHAT, set()),
        ({"prompt": ASKED, "answer": "So."}, *CHAT, set()),
        ({"prompt": "Why?", "completion": ANSWER}, *CHAT, set()),
        ({"prompt": "Why?", "messages": ASKED + ANSWER}, *CHAT, {"prompt"}),
        ({"messages": ASKED + ANSWER + ASKED + ANSWER}, CHAT[0] + CHAT[1] + CHAT[0], CHAT[1], set()),
    ],
)
def test_texts_and_answered_prompts(record, prompt, text, unused):
    found_prompt, found_text, used, has_response = taken(record)
    assert (found_prompt, found_text) == (prompt, text)
    assert used == record.keys() - unused
    assert has_response is (None if prompt is None else True)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "p", "id": 1}, "p"),
        ({"prompt": ASKED}, CHAT[0]),
        ({"instruction": "Why?"}, CHAT[0]),
        ({"messages": ASKED}, CHAT[0]),
    ],
)
def test_prompts_without_a_response(record, prompt):
    found_prompt, text, _, has_response = taken(record)
    assert (found_prompt, text, has_response) == (prompt, "", False)


@pytest.mark.parametrize(
    ("record", "names", "prompt", "text"),
    [
        ({"q": "p", "a": "r", "response": "no", "text": "no"}, ("a", "q"), "p", "r"),
        ({"q": "p", "answer": "r", "prompt": "no"}, ("text", "q"), "p", "r"),
        ({"prompt": "p", "a": "r", "response": "no"}, ("a", "prompt"), "p", "r"),
        ({"review": "t", "messages": ASKED}, ("review", "prompt"), None, "t"),
        ({"dialog": ASKED + ANSWER, "text": "no"}, ("dialog", "prompt"), *CHAT),
        ({"q": ASKED, "answer": "So."}, ("text", "q"), *CHAT),
        ({"q": "p", "messages": ASKED + ANSWER}, ("text", "q"), "p", ""),
    ],
)
def test_configured_names_are_taken_alone(record, names, prompt, text):
    assert taken(record, names)[:2] == (prompt, text)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": "Why?"}, "f, line 1: field 'messages' is 'Why.': it must be a list of messages"),
        ({"messages": [{"role": "tool", "content": "42"}]}, "f, line 1: chat template 'hh' has no role 'tool'"),
        ({"prompt": "p", "completion": True}, "f, line 1: field 'completion' is True: it must be a string"),
        ({"prompt": 3, "completion": "r"}, "f, line 1: field 'prompt' is 3: it must be a string"),
        ({"prompt": None, "response": "r"}, r"neither 'text' nor 'prompt' is there; the fields are \['response'\]"),
    ],
)
def test_records_of_no_known_shape(record, message):
    with pytest.raises(UserError, match=message):
        taken(record)


@pytest.mark.parametrize("record", [{"q": None, "solution": "r"}, {"solution": "r"}])
def test_a_named_prompt_that_is_empty_is_not_there(record):
    """Its response alone would be learnt as a whole text."""
    with pytest.raises(UserError, match=r"^f, line 1: no field 'q', which .*prompt_feature names; .* \['solution'\]$"):
        taken(record, ("solution", "q"))


def load(tmp_path, records, **options):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [
        example for split in ("train", "validation", "test") for example in load_examples(str(path), split, **options)
    ]


def said(tmp_path, capsys):
    return capsys.readouterr().out.replace(str(tmp_path), "FOLDER")


def test_a_file_of_two_names_is_used_whole_and_said_once(tmp_path, capsys):
    records = [{"prompt": f"p{n}", ("response", "completion")[n % 2]: f"r{n}", "id": n} for n in range(7)]
    assert sorted(load(tmp_path, records), key=lambda e: e.prompt) == [Example(f"r{n}", f"p{n}") for n in range(7)]
    assert said(tmp_path, capsys) == (
        "data: FOLDER/a.jsonl: 7 records; prompt from 'prompt'; response from 'response' (4) and 'completion' (3); "
        "unused fields: 'id'\n"
    )


def test_what_is_left_out_is_counted_with_the_first_line(tmp_path, capsys):
    records = [{"text": text} for text in ("one", " ", "two", "three", "")]
    assert len(load(tmp_path, records)) == 3
    assert "5 records; text from 'text'; left out: blank: 2 (the first: FOLDER/a.jsonl, line 2)\n" in said(
        tmp_path, capsys
    )


def test_prompts_and_empty_responses_and_chats_are_said(tmp_path, capsys):
    load(tmp_path, [{"prompt": str(n)} for n in range(3)])
    assert said(tmp_path, capsys).endswith("prompt from 'prompt'; no responses\n")
    load(tmp_path, [{"prompt": str(n), "response": "yes" if n else ""} for n in range(3)])
    assert "with an empty response: 1 (the first: FOLDER/a.jsonl, line 1)" in said(tmp_path, capsys)
    load(tmp_path, [{"messages": [*ASKED, {"role": "assistant", "content": str(n)}, *ASKED]} for n in range(3)])
    assert said(tmp_path, capsys).endswith("3 records; chat from 'messages'; no responses; chat template chatml\n")


@pytest.mark.parametrize("wrong", [{"prompt": "p", "reply": "r"}, {"messages": ASKED}, {"prompt": "p", "answer": None}])
def test_a_prompt_without_a_response_where_others_have_one_is_named(tmp_path, wrong):
    good = {"prompt": "p", "completion": "r"}
    with pytest.raises(UserError, match=r"a.jsonl, line 3: a prompt without a response, and that of .*line 1 has one"):
        load(tmp_path, [good, good, wrong])
    with pytest.raises(UserError, match=r"a.jsonl, line 1: a prompt without a response, and that of .*line 2 has one"):
        load(tmp_path, [wrong, good, good])

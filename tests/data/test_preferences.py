"""Comparisons from files: splits, tokens and masks, and what bad files are told."""

import json

import numpy as np
import pytest

from tfppo.config import RewardModelConfig
from tfppo.data.chat import CHATML
from tfppo.data.preferences import Preference, encode_preferences, load_preferences
from tfppo.data.splits import split_of
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError

TOKENIZER = Tokenizer([])  # a byte a token, from id 2 on
GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


def write(tmp_path, records):
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def ids_of(text):
    return [2 + byte for byte in text.encode()]


def test_a_text_or_a_list_of_rejected_ones(tmp_path):
    records = [{"prompt": str(n), "chosen": "yes", "rejected": "no" if n % 2 else ["no"]} for n in range(6)]
    splits = load_preferences(write(tmp_path, records))
    assert {split for split in splits if splits[split]} == {"train", "validation", "test"}
    together = [preference for members in splits.values() for preference in members]
    assert sorted(together, key=lambda p: p.prompt) == [Preference(str(n), ("yes", "no")) for n in range(6)]


def test_the_chosen_one_comes_first_and_the_others_keep_their_order(tmp_path):
    records = [{"prompt": str(n), "rejected": ["b", "c", "a"], "chosen": "d", "who": 1} for n in range(3)]
    for members in load_preferences(write(tmp_path, records)).values():
        assert [preference.responses for preference in members] == [("d", "b", "c", "a")]


def test_a_prompt_is_in_one_split_by_its_hash(tmp_path):
    records = [{**GOOD, "prompt": str(n // 2), "chosen": str(n)} for n in range(400)]
    splits = load_preferences(write(tmp_path, records))
    for split, members in splits.items():
        assert all(split_of(preference.prompt) == split for preference in members)
        assert len({preference.prompt for preference in members}) * 2 == len(members)
    assert 340 < len(splits["train"]) < 380


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"line 2: no field 'rejected'; the fields are \['chosen', 'prompt'\]: write"),
        ({"chosen": "b", "rejected": "c"}, "line 2: no field 'prompt', and .* no common beginning"),
        ({"prompt": "a", "rejected": "c"}, "line 2: no field 'chosen'"),
        ({**GOOD, "prompt": None}, "line 2: no field 'prompt', and chosen and rejected have no common beginning"),
        ({**GOOD, "prompt": 3}, "line 2: field 'prompt' is 3: it must be a string"),
        ({**GOOD, "chosen": None}, r"line 2: no field 'chosen'; the fields are \['prompt', 'rejected'\]: write"),
        ({**GOOD, "chosen": ["b"]}, r"line 2: field 'chosen' is \['b'\]: it must be a string"),
        ({**GOOD, "rejected": 3}, "line 2: field 'rejected' is 3: it must be a string"),
        ({**GOOD, "rejected": ["c", 3]}, "line 2: field 'rejected' is 3: it must be a string"),
        ({**GOOD, "rejected": []}, r"line 2: field 'rejected' is \[\]: give at least one"),
        (
            {**GOOD, "rejected": ["c", "d"]},
            "line 2: field 'rejected' has 2 texts, .* first record 1: give every record",
        ),
        ({**GOOD, "rejected": "\ud800"}, "line 2: field 'rejected' has half of a surrogate pair"),
        (["a", "b", "c"], "line 2: got .*, not a JSON object"),
    ],
)
def test_a_bad_record(tmp_path, record, message):
    source = write(tmp_path, [GOOD, record])
    with pytest.raises(UserError, match=message) as error:
        load_preferences(source)
    assert str(error.value).startswith(source)


def test_a_bad_file(tmp_path):
    with pytest.raises(UserError, match="reward_model.source is ''; name files of records with prompt, chosen"):
        load_preferences("")
    with pytest.raises(UserError, match="cannot be read .*: check the path"):
        load_preferences(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(UserError, match="line 1: not JSON"):
        path = tmp_path / "broken.jsonl"
        path.write_text("{")
        load_preferences(str(path))
    for records in ([], [GOOD, GOOD], [GOOD, {**GOOD, "prompt": "b"}]):
        with pytest.raises(UserError, match="no comparisons for split .* at least 3 different prompts"):
            load_preferences(write(tmp_path, records))


def test_tokens_and_masks():
    pad, eos = TOKENIZER.pad_id, TOKENIZER.eos_id
    preferences = [Preference("p", ("abc", "d", "")), Preference("pq", ("", "ab", "e"))]
    found = encode_preferences(preferences, TOKENIZER, RewardModelConfig())
    a, b, c, d, e = ids_of("abcde")
    np.testing.assert_array_equal(found.prompt_ids, [[pad, eos, *ids_of("p")], [eos, *ids_of("pq")]])
    np.testing.assert_array_equal(found.prompt_mask, [[0, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(
        found.response_ids,
        [
            [[a, b, c, eos], [d, eos, pad, pad], [eos, pad, pad, pad]],
            [[eos, pad, pad, pad], [a, b, eos, pad], [e, eos, pad, pad]],
        ],
    )
    np.testing.assert_array_equal(found.response_mask.sum(axis=2), [[4, 2, 1], [1, 3, 2]])
    assert found.response_mask.dtype == np.float32 and (np.diff(found.response_mask, axis=2) <= 0).all()


def test_what_is_too_long_is_left_out_and_counted(capsys):
    config = RewardModelConfig(source="f.jsonl", max_prompt_tokens=2, max_response_tokens=3)
    preferences = [
        Preference("ab", ("cd", "e")),  # as long as may be: EOS counts in the response, the start token does not
        Preference("abc", ("c", "e"), place="f.jsonl, line 5"),
        Preference("a", ("cde", "e")),
        Preference("a", ("c", "efg")),
    ]
    found = encode_preferences(preferences, TOKENIZER, config)
    assert found.prompt_ids.shape == (1, 3) and found.response_ids.shape == (1, 2, 3)
    assert capsys.readouterr().out == (
        "data: f.jsonl: left out: comparisons longer than reward_model.max_prompt_tokens 2 or "
        "reward_model.max_response_tokens 3: 3 (the first: f.jsonl, line 5)\n"
    )
    with pytest.raises(UserError, match="each of the 3 comparisons .* reward_model.max_response_tokens 3; raise them"):
        encode_preferences(preferences[1:], TOKENIZER, config)


def only(tmp_path, record, template=CHATML):
    """The comparison that one record is taken for; two others fill the splits."""
    records = [record, *({**GOOD, "prompt": str(n), "rejected": ["c"]} for n in range(5))]
    path = tmp_path / "comparisons.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    splits = load_preferences(str(path), template)
    (found,) = [p for members in splits.values() for p in members if p.place.endswith("line 1")]
    return found


ASKED = {"role": "user", "content": "Hi"}
MESSAGES = [[{"role": "assistant", "content": text}] for text in ("good", "bad")]
CHAT_PREFERENCE = Preference("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", ("good", "bad"))
HH = "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        # As the files of HH-RLHF are: answers that begin alike are not part of the prompt.
        (
            {"chosen": f"{HH} I think yes", "rejected": f"{HH} I think no"},
            Preference(HH, (" I think yes", " I think no")),
        ),
        ({"chosen": f"{HH} Yes", "rejected": HH}, Preference(HH, (" Yes", ""))),
        # No turn: up to the word in which they part, whose blank is the responses'.
        (
            {"chosen": "The sky is green-blue.", "rejected": "The sky is green."},
            Preference("The sky is", (" green-blue.", " green.")),
        ),
        ({"prompt": [ASKED], "chosen": MESSAGES[0], "rejected": MESSAGES[1]}, CHAT_PREFERENCE),
        ({"prompt": [ASKED], "chosen": "good", "rejected": ["bad"]}, CHAT_PREFERENCE),
        ({"prompt": [ASKED], "chosen": MESSAGES[0], "rejected": [MESSAGES[1]]}, CHAT_PREFERENCE),
        ({"chosen": [ASKED, *MESSAGES[0]], "rejected": [ASKED, *MESSAGES[1]]}, CHAT_PREFERENCE),
        # As in UltraFeedback: the prompt once more as a text of its own.
        ({"prompt": "Hi", "chosen": [ASKED, *MESSAGES[0]], "rejected": [ASKED, *MESSAGES[1]]}, CHAT_PREFERENCE),
    ],
)
def test_chats_and_whole_transcripts(tmp_path, record, expected):
    assert only(tmp_path, record) == expected


def test_transcripts_that_part_early_keep_what_follows(tmp_path):
    more = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "end"}]
    found = only(tmp_path, {"chosen": [ASKED, *MESSAGES[0], *more], "rejected": [ASKED, *MESSAGES[1]]})
    assert found.prompt == CHAT_PREFERENCE.prompt
    assert found.responses == ("good<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\nend", "bad")


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": "yes indeed", "rejected": "no never"},
        {"chosen": MESSAGES[0], "rejected": MESSAGES[1]},
        {"chosen": [ASKED, *MESSAGES[0]], "rejected": [ASKED, {**ASKED, "content": "Ho"}]},
    ],
)
def test_no_common_beginning(tmp_path, record):
    with pytest.raises(UserError, match="line 1: no field 'prompt', and chosen and rejected have no common beginning"):
        only(tmp_path, record)


def test_the_line_of_a_load(tmp_path, capsys):
    records = [{"chosen": f"{HH} yes {n}", "rejected": f"{HH} no", "id": n} for n in range(2)]
    records += [{"prompt": str(n), "chosen": "a", "rejected": "ab"[n % 2]} for n in range(6)]
    source = write(tmp_path, records)
    load_preferences(source)
    assert capsys.readouterr().out == (
        f"data: {source}: 8 records; prompt and chosen from 'chosen' (2); rejected from 'rejected'; prompt from "
        f"'prompt' (6); chosen from 'chosen' (6); unused fields: 'id'; left out: comparisons whose chosen response "
        f"is also a rejected one: 3 (the first: {source}, line 3)\n"
    )

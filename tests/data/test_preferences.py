"""Comparisons from files: splits, tokens and masks, and what bad files are told."""

import json
import logging

import numpy as np
import pytest

from tfppo.config import RewardModelConfig
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
        ({"chosen": "b", "rejected": "c"}, "line 2: no field 'prompt'"),
        ({"prompt": "a", "rejected": "c"}, "line 2: no field 'chosen'"),
        ({**GOOD, "prompt": None}, "line 2: field 'prompt' is None: it must be a string"),
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
    with pytest.raises(UserError, match="reward_model.source is ''; name a .jsonl file"):
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


def test_what_is_too_long_is_left_out_and_counted(caplog):
    config = RewardModelConfig(source="f.jsonl", max_prompt_tokens=2, max_response_tokens=3)
    preferences = [
        Preference("ab", ("cd", "e")),  # as long as may be: EOS counts in the response, the start token does not
        Preference("abc", ("c", "e")),
        Preference("a", ("cde", "e")),
        Preference("a", ("c", "efg")),
    ]
    with caplog.at_level(logging.WARNING):
        found = encode_preferences(preferences, TOKENIZER, config)
    assert found.prompt_ids.shape == (1, 3) and found.response_ids.shape == (1, 2, 3)
    assert "3 of 4 comparisons are longer than reward_model.max_prompt_tokens 2" in caplog.text
    with pytest.raises(UserError, match="each of the 3 comparisons .* reward_model.max_response_tokens 3; raise them"):
        encode_preferences(preferences[1:], TOKENIZER, config)

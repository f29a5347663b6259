"""Prompts: their lengths, their padding and an order that depends on the step alone."""

import numpy as np
import pytest

from tfppo.config import DataConfig
from tfppo.data.prompts import PromptSet, Trajectory, encode_trajectories, pad_left, padded_length
from tfppo.data.shapes import Example
from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError

EOS, PAD = 1, 0


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([])  # a token a byte: the byte b is 2 + b


def byte_ids(text):
    return [2 + byte for byte in text.encode()]


def encode_prompts(examples, tokenizer, config, seed, room=8):
    """The prompts of the trajectories alone."""
    return [trajectory.prompt for trajectory in encode_trajectories(examples, tokenizer, config, seed, room)]


def config(shortest=4, longest=8, **more):
    return DataConfig(min_prompt_tokens=shortest, max_prompt_tokens=longest, **more)


def test_prompts_are_the_starts_of_texts(tokenizer):
    texts = [f"{number:04d} and so on, and on" for number in range(2000)]
    prompts = encode_prompts([Example(text) for text in texts], tokenizer, config(), seed=0)
    assert len(prompts) == 2000
    for text, prompt in zip(texts, prompts, strict=True):
        assert prompt == [EOS, *byte_ids(text)[: len(prompt) - 1]]
    counts = np.bincount([len(prompt) - 1 for prompt in prompts], minlength=10)
    # 5 lengths, both ends included: 400 of each, sigma 17.9.
    assert counts[:4].sum() == counts[9:].sum() == 0
    assert np.abs(counts[4:9] - 400).max() < 4 * 17.9


def test_a_single_length(tokenizer):
    prompts = encode_prompts([Example("abcdefgh")] * 5, tokenizer, config(3, 3), seed=1)
    assert prompts == [[EOS, *byte_ids("abc")]] * 5


def test_texts_that_leave_nothing_to_write_are_left_out(tokenizer):
    texts = ["abcd", "abcde", "ab", "abcdef"]
    prompts = encode_prompts([Example(text) for text in texts], tokenizer, config(4, 4), seed=0)
    assert prompts == [[EOS, *byte_ids("abcd")]] * 2


def test_given_prompts_are_taken_whole(tokenizer):
    examples = [Example("the response", prompt="12345678"), Example("", prompt="a"), Example("r", prompt="")]
    assert encode_prompts(examples, tokenizer, config(4, 8), seed=0) == [
        [EOS, *byte_ids("12345678")],
        [EOS, *byte_ids("a")],
        [EOS],
    ]


def test_trajectories_are_prompts_and_how_the_data_goes_on(tokenizer):
    examples = [Example("abcdefgh"), Example("abc"), Example(" then", prompt="when"), Example("", prompt="x")]
    assert encode_trajectories(examples, tokenizer, config(5, 5), seed=0, room=8) == [
        Trajectory([EOS, *byte_ids("abcde")], [*byte_ids("fgh"), EOS]),
        Trajectory([EOS, *byte_ids("when")], [*byte_ids(" then"), EOS]),
        Trajectory([EOS, *byte_ids("x")], [EOS]),
    ]


def test_the_fields_of_a_record_go_with_its_trajectory(tokenizer):
    examples = [Example("abcdefgh", columns={"n": 1}), Example("abc", columns={"n": 2}), Example("r", "p", {"n": 3})]
    found = encode_trajectories(examples, tokenizer, config(5, 5), seed=0, room=8)
    assert [trajectory.columns for trajectory in found] == [{"n": 1}, {"n": 3}]


LONG = [Example("r", "123456789", place="f, line 3"), Example("r", "12345678"), Example("r", "0123456789ab")]


def test_long_prompts_are_left_out_and_counted(tokenizer, capsys):
    found = encode_prompts(LONG, tokenizer, config(source="drop.jsonl"), seed=0)
    assert found == [[EOS, *byte_ids("12345678")]]
    assert capsys.readouterr().out == (
        "data: drop.jsonl: left out: prompts of more than the 8 tokens that model.max_sequence_length leaves beside "
        "sampling.response_length: 2 (the first: f, line 3)\n"
    )


def test_long_prompts_are_cut_from_the_left(tokenizer, capsys):
    found = encode_prompts(LONG, tokenizer, config(source="cut.jsonl", long_prompts="cut"), seed=0)
    assert found == [[EOS, *byte_ids(text)] for text in ("23456789", "12345678", "456789ab")]
    assert "cut from the left: prompts of more than the 8 tokens" in capsys.readouterr().out


def test_long_prompts_are_refused_by_name(tokenizer):
    with pytest.raises(UserError, match="^f, line 3: the prompt '123456789' has 9 tokens, more than the 8 .* drop or"):
        encode_prompts(LONG, tokenizer, config(long_prompts="refuse"), seed=0)


@pytest.mark.parametrize(("own", "room", "longest"), [(None, 12, 12), (9, 12, 9), (12, 9, 9)])
def test_given_prompts_have_what_the_model_leaves_or_less(tokenizer, own, room, longest):
    found = encode_prompts(LONG, tokenizer, config(max_given_prompt_tokens=own), seed=0, room=room)
    assert max(map(len, found)) == 1 + longest


def test_where_every_prompt_is_too_long(tokenizer):
    with pytest.raises(UserError, match="yields no prompt: each of its prompts has more than the 3 tokens of data.max"):
        encode_prompts(LONG, tokenizer, config(max_given_prompt_tokens=3), seed=0)


def test_texts_that_are_too_short_are_counted(tokenizer, capsys):
    texts = [Example("abcde"), Example("ab", place="f, line 7"), Example("")]
    encode_prompts(texts, tokenizer, config(4, 4, source="short.txt"), seed=0)
    assert capsys.readouterr().out == (
        "data: short.txt: texts too short to be cut into a prompt and the rest: 2 (the first: f, line 7)\n"
    )


def test_prompts_are_padded_to_the_longest_given_one_or_to_what_may_be_drawn(tokenizer):
    given, text = [Example("r", "ab"), Example("r", "abcdef")], [Example("a long text")]

    def length(examples, settings):
        return padded_length(encode_trajectories(examples, tokenizer, settings, 0, 20), examples, settings)

    assert length(given, config()) == 7  # what is there, not what may be
    assert length(text, config(4, 8)) == 9  # whatever was drawn
    assert length([*text, *given], config(1, 3)) == 7


def test_no_prompt_at_all_is_an_error(tokenizer):
    with pytest.raises(UserError, match="yields no prompt.*data.min_prompt_tokens 4"):
        encode_prompts([Example("abc"), Example("abcd")], tokenizer, config(4, 4), seed=0)


def test_the_seed_decides_the_lengths(tokenizer):
    examples = [Example("a long enough text")] * 40
    first, again, other = (encode_prompts(examples, tokenizer, config(), seed) for seed in (1, 1, 2))
    assert first == again != other


def test_left_padding_by_hand():
    prompts = pad_left([[1, 5], [1, 6, 7], [1]], PAD, 4)
    assert prompts.prompt_ids.numpy().tolist() == [[0, 0, 1, 5], [0, 1, 6, 7], [0, 0, 0, 1]]
    assert prompts.prompt_mask.numpy().tolist() == [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]
    assert prompts.prompt_ids.dtype == prompts.prompt_mask.dtype == "int32"
    full = pad_left([[1, 2, 3]], PAD, 3)
    assert full.prompt_ids.numpy().tolist() == [[1, 2, 3]] and full.prompt_mask.numpy().tolist() == [[1, 1, 1]]


class TestPromptSet:
    def make(self, tokenizer, count=10, seed=0):
        trajectories = [
            Trajectory([EOS, 100 + number], [200 + number] * (number % 4) + [EOS], {"answer": f"a{number}"})
            for number in range(count)
        ]
        return PromptSet(trajectories, tokenizer.pad_id, 4, seed)

    def numbers(self, prompts):
        assert prompts.prompt_ids.shape[1] == 4
        assert (prompts.prompt_ids[:, :3].numpy() == [PAD, PAD, EOS]).all()
        assert (prompts.prompt_mask.numpy() == [0, 0, 1, 1]).all()
        return (prompts.prompt_ids[:, 3].numpy() - 100).tolist()

    def stream(self, prompts, steps, size=4):
        return [number for step in steps for number in self.numbers(prompts.batch(step, size))]

    def test_every_epoch_has_every_prompt_once_in_a_new_order(self, tokenizer):
        stream = self.stream(self.make(tokenizer), range(10))  # 40 draws of 10 prompts
        epochs = [stream[start : start + 10] for start in range(0, 40, 10)]
        assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 4
        assert list(range(10)) not in epochs

    def test_a_batch_depends_on_its_step_alone(self, tokenizer):
        in_order = self.stream(self.make(tokenizer), range(8))
        prompts = self.make(tokenizer)
        backwards = [self.stream(prompts, [step]) for step in reversed(range(8))]
        assert [number for batch in reversed(backwards) for number in batch] == in_order

    def test_the_stream_does_not_depend_on_the_batch_size(self, tokenizer):
        prompts = self.make(tokenizer)
        assert self.stream(prompts, range(6), size=4) == self.stream(prompts, range(3), size=8)

    def test_the_seed_decides_the_order(self, tokenizer):
        first, again, other = (self.stream(self.make(tokenizer, seed=seed), range(5)) for seed in (1, 1, 2))
        assert first == again != other

    def test_a_batch_larger_than_the_set(self, tokenizer):
        assert sorted(self.stream(self.make(tokenizer, count=3), [0], size=9)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]

    def test_a_fixed_choice(self, tokenizer):
        prompts = self.make(tokenizer)
        chosen = [number for batch, _ in prompts.sample(6).batches(4) for number in self.numbers(batch)]
        again = [number for batch, _ in self.make(tokenizer).sample(6).batches(4) for number in self.numbers(batch)]
        assert chosen == again and len(prompts.sample(6)) == len(set(chosen)) == 6
        assert len(prompts.sample(99)) == len(prompts) == 10

    def test_all_in_order(self, tokenizer):
        batches = [self.numbers(batch) for batch, _ in self.make(tokenizer).batches(4)]
        assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    def test_a_prompt_is_repeated_next_to_itself(self, tokenizer):
        prompts = self.make(tokenizer)
        for step in range(4):
            numbers = self.numbers(prompts.batch(step, 6, repeats=3))
            assert numbers[:3] == [numbers[0]] * 3 and numbers[3:] == [numbers[3]] * 3
            # The groups follow each other as single prompts do.
            assert numbers[::3] == self.numbers(prompts.batch(step, 2))

    def test_continuations_go_with_their_prompts(self, tokenizer):
        prompts = self.make(tokenizer)
        seen = set()
        for step in range(5):
            ids, mask = prompts.continuations(step, 4, 3)
            assert ids.dtype == np.int32 and mask.dtype == np.float32 and ids.shape == mask.shape == (4, 3)
            for row, number in enumerate(self.numbers(prompts.batch(step, 4))):
                expected = ([200 + number] * (number % 4) + [EOS])[:3]  # cut where it is longer
                size = len(expected)
                assert ids[row].tolist() == expected + [PAD] * (3 - size)
                assert mask[row].tolist() == [1.0] * size + [0.0] * (3 - size)
                seen.add(size)
        assert seen == {1, 2, 3}

    def test_columns_go_with_their_prompts(self, tokenizer):
        prompts = self.make(tokenizer)
        for step in range(4):
            rows = step, 6, 3
            expected = [f"a{number}" for number in self.numbers(prompts.batch(*rows))]
            assert prompts.columns(*rows) == {"answer": expected}
        for batch, columns in prompts.sample(6).batches(4):
            assert columns == {"answer": [f"a{number}" for number in self.numbers(batch)]}

    def test_two_rows_of_one_prompt_keep_their_own_columns(self, tokenizer):
        records = [{"answer": 1, "a": 1}, {"answer": 2}, {"answer": None}]
        prompts = PromptSet([Trajectory([EOS, 5], [EOS], record) for record in records], PAD, 4, 0)
        found = prompts.columns(0, 6, 2)
        assert found["answer"][::2] == found["answer"][1::2]
        assert sorted(map(str, found["answer"][::2])) == ["1", "2", "None"]
        assert list(found) == ["a", "answer"] and found["a"] == [
            1 if answer == 1 else None for answer in found["answer"]
        ]
        ((_, columns),) = prompts.batches(3)
        assert columns == {"a": [1, None, None], "answer": [1, 2, None]}


def test_columns_of_examples_that_are_left_out_are_left_out(tokenizer):
    examples = [Example("abcdef", columns={"n": 0}), Example("a", columns={"n": 1}), Example("x", "p", {"n": 2})]
    assert [row.columns for row in encode_trajectories(examples, tokenizer, config(4, 4), 0, 8)] == [{"n": 0}, {"n": 2}]


def test_a_digest_tells_prompts_continuations_and_their_order_apart():
    def digest(rows, pad_id=0, length=4, seed=0):
        return PromptSet([Trajectory(*row) for row in rows], pad_id, length, seed).digest()

    rows = [([1, 5], [6, 1]), ([1, 7], [8])]
    others = [rows[::-1], rows[:1], [([1, 5, 6], [1]), rows[1]], [rows[0], ([1, 7], [9])]]
    assert len({digest(trajectories) for trajectories in (rows, *others)}) == 5
    assert digest(rows, 9, 8, seed=1) == digest(rows)


def test_prompts_padded_to_another_length():
    prompts = PromptSet([Trajectory([EOS, *range(5, 5 + n)], [EOS]) for n in (1, 2)], PAD, 3, 0)
    ((batch, _),) = prompts.padded_to(4).batches(9)
    assert batch.prompt_ids.numpy().tolist() == [[PAD, PAD, EOS, 5], [PAD, EOS, 5, 6]]
    assert prompts.padded_to(7).length == 7 and len(prompts.padded_to(7)) == 2

"""Packing: every token of every document once, with its target, weight, segment and position."""

import numpy as np
import pytest

from tfppo.data.packing import encode_documents, pack
from tfppo.data.sources import Example
from tfppo.data.tokenizer import Tokenizer

EOS = Tokenizer.eos_id


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer([(b"t", b"h"), (b"th", b"e")])


def byte_ids(text):
    return [2 + byte for byte in text.encode()]


def test_encoded_by_hand(tokenizer):
    examples = [Example("the a"), Example("b", prompt="the"), Example("", prompt="xy"), Example("c", prompt="")]
    assert encode_documents(examples, tokenizer) == [
        ([EOS, 259, *byte_ids(" a"), EOS], 0),
        ([EOS, 259, *byte_ids("b"), EOS], 1),
        ([EOS, *byte_ids("xy"), EOS], 2),
        ([EOS, *byte_ids("c"), EOS], 0),
    ]


def test_packed_by_hand():
    packed = pack([([1, 10, 11, 1], 0), ([1, 20, 21, 22, 1], 2), ([1, 30, 1], 1)], 6)
    # Longest first: 4 inputs and the 2 of the last document fill a row, the 3 of the first one another.
    assert packed.inputs.tolist() == [[1, 20, 21, 22, 1, 30], [1, 10, 11, 0, 0, 0]]
    assert packed.targets.tolist() == [[20, 21, 22, 1, 30, 1], [10, 11, 1, 0, 0, 0]]
    assert packed.weights.tolist() == [[0, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0]]
    assert packed.segment_ids.tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 0, 0, 0]]
    dtypes = [part.dtype for part in packed]
    assert dtypes == [np.int32, np.int32, np.float32, np.int32, np.int32]


def test_cut_by_hand():
    """Ten targets at length 4, the first five without weight: pieces of 4, 4 and 2."""
    packed = pack([(list(range(100, 111)), 5)], 4)
    assert packed.inputs.tolist() == [[100, 101, 102, 103], [104, 105, 106, 107], [108, 109, 0, 0]]
    assert packed.targets.tolist() == [[101, 102, 103, 104], [105, 106, 107, 108], [109, 110, 0, 0]]
    assert packed.weights.tolist() == [[0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 0, 0]]


def test_a_prompt_that_ends_beyond_a_piece_takes_no_weight_from_its_neighbour():
    packed = pack([([1, 2, 3, 4, 5, 6, 7], 5), ([1, 9, 1], 0)], 3)
    rows = {tuple(row): weights for row, weights in zip(packed.inputs.tolist(), packed.weights.tolist(), strict=True)}
    assert rows == {(1, 2, 3): [0, 0, 0], (4, 5, 6): [0, 0, 1], (1, 9, 0): [1, 1, 0]}


@pytest.mark.parametrize("length", [1, 7, 16, 64])
def test_every_token_once(length):
    rng = np.random.default_rng(length)
    documents, expected, token = [], [], 10  # every token of every document has a number of its own
    for _ in range(150):
        size, skip = int(rng.integers(2, 40)), int(rng.integers(0, 12))
        ids = list(range(token, token + size))
        token += size
        documents.append((ids, skip))
        expected += [
            (ids[i], ids[i + 1], float(i >= skip), i % length) for i in range(size - 1)
        ]  # input, target, weight, position
    packed = pack(documents, length)
    assert all(part.shape == (len(packed.inputs), length) for part in packed)
    real = packed.segment_ids > 0
    columns = (packed.inputs[real], packed.targets[real], packed.weights[real], packed.positions[real])
    assert sorted(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert not any(part[~real].any() for part in packed)
    for inputs, segments, positions in zip(packed.inputs, packed.segment_ids, packed.positions, strict=True):
        # Segments count 1, 2, 3 ... without a gap, padding comes last, and one segment is one unbroken piece.
        count = int((segments > 0).sum())
        assert segments[0] == 1 and (segments[count:] == 0).all()
        assert set(np.diff(segments[:count]).tolist()) <= {0, 1}
        for t in range(1, count):
            same = segments[t] == segments[t - 1]
            assert positions[t] == (positions[t - 1] + 1 if same else 0)
            assert not same or inputs[t] == inputs[t - 1] + 1


def test_wastes_little():
    """First-fit, longest first, needs at most 11/9 of the rows that are possible, and one more (Johnson 1973)."""
    sizes = np.random.default_rng(0).integers(2, 40, 500)
    packed = pack([(list(range(size)), 0) for size in sizes], 64)
    assert len(packed.inputs) <= np.ceil((sizes - 1).sum() / 64) * 11 / 9 + 1
    # Pieces that fit together do share a row.
    assert len(pack([([1, 2, 3, 4], 0), ([1, 2, 3, 4, 5], 0), ([1, 2], 0), ([1, 2, 3], 0)], 5).inputs) == 2


def test_the_same_documents_give_the_same_rows():
    rng = np.random.default_rng(3)
    documents = [(rng.integers(1, 99, rng.integers(2, 30)).tolist(), 1) for _ in range(60)]
    for first, second in zip(pack(documents, 24), pack(documents, 24), strict=True):
        np.testing.assert_array_equal(first, second)


def test_no_document_is_no_row():
    assert pack([], 8).inputs.shape == (0, 8)

"""Both sides of the tokenizer, against hand-worked examples and a naive BPE written here."""

import json
import os
import random
import subprocess
import sys

import pytest
import tensorflow as tf

from tfppo.data.tokenizer import Tokenizer
from tfppo.errors import UserError

CORPUS = [
    "The film isn't as good as the book, but it's worth the 12 dollars.",
    "  Indented twice,\tthen tabbed.\r\nA new line, and 1999 was long ago...",
    "Das Frühstück im Café war schön; le garçon était déjà là.",
    "東京は晴れです。明日も晴れです。 हिन्दी में लिखा है १२६ العربية جميلة",
    "🙂🙂 👩‍👩‍👧‍👦 the the the then there other",
] * 2

NASTY = {
    "empty": "",
    "one space": " ",
    "many spaces": " " * 50,
    "blanks around": "  \t lead and trail \n ",
    "blanks inside": "a  b   c \t d\t\te \n\n f\n  g\x0b\x0ch",
    "CRLF": "one\r\ntwo\r\n\r\n three\r",
    "unicode blanks": "a\u00a0b\u2009c\u202fd\u3000e\u2028f\u0085g\u200bh \u00a0 i",
    "emoji joined": "👩‍👩‍👧‍👦👍🏽 🇫🇷🏳️‍🌈",
    "combining": "e\u0301 n\u0303o\u0308\u0323 \u0301",
    "CJK": "東京は晴れ。 한국어 漢字",
    "Arabic": "مرحبا بالعالم ١٢٣",
    "Devanagari": "हिन्दी १२६ ६ ६६ \u096f",
    "Devanagari marker before space": "६ the६ ६the ",
    "NUL": "a\x00b \x00\x00 c\x00",
    "controls": "".join(map(chr, range(32))) + "\x7f\x80\x9f",
    "replacement character": "\ufffd a\ufffdb",
    "byte order mark": "\ufeffthe \ufeff",
    "noncharacters": "\uffff\ufffe\U0010ffff\ufdd0",
    "long word": "thenother" * 1200,
    "long repetition": "a" * 10_001,
    "long emoji": "🙂" * 2500,
    "digits": "1 12 1999 3.14 1,000 a1b2 007",
    "contractions": "don't I'll it's 'tis dogs' o'clock'n'roll ''quoted'' 'a'b'",
    "special strings": "a<|endoftext|>b <|pad|> <|endoftext|><|pad|>",
    "punctuation": "wow!!! (really?) #$%^&*[]{}\\|`~ --- ... a_b @x",
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CORPUS, 420)


@pytest.fixture(scope="module")
def graph(tokenizer):
    return tokenizer.graph_tokenizer()


def ids_of_both_sides(tokenizer, texts):
    ids = tokenizer.encode_batch(texts)
    assert tokenizer.graph_tokenizer().tokenize(texts).to_list() == ids
    assert [tokenizer.encode(text) for text in texts] == ids
    return ids


def decoded_by_graph(graph, ids):
    ragged = tf.ragged.constant(ids, dtype=tf.int32, ragged_rank=1)
    mask = tf.sequence_mask(ragged.row_lengths(), ragged.bounding_shape()[1])
    texts = graph.detokenize(ragged.to_tensor(), mask).numpy()
    return [text.decode("utf-8") for text in texts]


def naive_bpe(word, ranks):
    """The textbook loop over one word: the tokens, as bytes. `ranks` maps a pair to its rank."""
    tokens = [bytes([byte]) for byte in word.encode("utf-8")]
    while True:
        known = [pair for pair in zip(tokens, tokens[1:], strict=False) if pair in ranks]
        if not known:
            return tokens
        first = min(known, key=ranks.get)
        merged = []
        while tokens:
            size = 2 if tuple(tokens[:2]) == first else 1
            merged.append(b"".join(tokens[:size]))
            tokens = tokens[size:]
        tokens = merged


def merges_in_file(folder):
    """The pairs of merges.txt as bytes, through the standard GPT-2 table of characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable}
    byte_of |= {chr(256 + index): byte for index, byte in enumerate(others)}
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    return [tuple(bytes(byte_of[c] for c in token) for token in line.split(" ")) for line in lines]


def test_hand_worked_merges():
    # ids: byte b is 2 + b, so a = 99, b = 100, c = 101; the merges follow from 258 on
    tokenizer = Tokenizer([(b"b", b"c"), (b"a", b"b"), (b"a", b"a"), (b"aa", b"bc"), (b" ", b"a")])
    assert tokenizer.vocabulary_size == 263
    expected = {
        "ab": [259],
        "abc": [99, 258],  # the lower rank wins, though it stands to the right
        "aab": [99, 259],
        "aaa": [260, 99],  # overlapping pairs: the left one
        "aaaaa": [260, 260, 99],
        "aabc": [261],
        "aaabc": [260, 99, 258],
        " a b": [262, 34, 100],
        "aa aa": [260, 34, 260],  # a + a before space + a
        "c\x00é": [101, 2, 197, 171],
    }
    assert ids_of_both_sides(tokenizer, list(expected)) == list(expected.values())


WORDS = [
    ["The", " cat", " isn't", " 12", "th", "!?", " ok"],
    ["x", "  ", " y", "\n\n", " z", "\t", "w", " \n", "v", "  "],
    [" ", " lead"],
    ["o'clock", "'", " '", "s", " ''", "q", "''", "1", "'", "t", " '", "a"],
    ["a", "\x00", "b", "_", "c", " \x1f"],
    ["étà", " 東京。は", "5", "\u00a0\u3000६🙂", " -", "e\u0301"],
    ["ab", "\r\n", "cd", "\r\n ", " <|", "pad", "|>"],
]


@pytest.mark.parametrize("words", WORDS)
def test_words_are_split_by_hand_worked_rule(words):
    # Merges byte by byte from the left, for each word and then for the text: without the cut into
    # words the whole text would be one token, with it each word is.
    merges = {}
    for text in [*words, "".join(words)]:
        data = text.encode("utf-8")
        for end in range(2, len(data) + 1):
            merges.setdefault(data[:end], (data[: end - 1], data[end - 1 : end]))
    tokenizer = Tokenizer(list(merges.values()))
    (ids,) = ids_of_both_sides(tokenizer, ["".join(words)])
    assert [tokenizer.decode([i]) for i in ids] == words


def test_agrees_with_naive_bpe(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    ranks = {pair: rank for rank, pair in enumerate(merges_in_file(tmp_path))}
    words = ["The", " other", " films", " weren't", " déjà", "  ", " thethen", "...", " 1999"]
    words += [" 晴れですです", "hhhtheree", "\r\n", "🙂" * 9, " العربية", "ththth"]
    id_of = {bytes([byte]): 2 + byte for byte in range(256)}
    id_of |= {left + right: 258 + rank for (left, right), rank in ranks.items()}
    expected = [[id_of[token] for token in naive_bpe(word, ranks)] for word in words]
    assert any(len(ids) == 1 for ids in expected) and any(len(ids) > 3 for ids in expected)
    assert ids_of_both_sides(tokenizer, words) == expected


@pytest.mark.parametrize("name", NASTY)
def test_nasty_text_agrees_and_returns(tokenizer, graph, name):
    text = NASTY[name]
    ids = tokenizer.encode(text)
    assert graph.tokenize([text]).to_list() == [ids]
    assert tokenizer.decode(ids) == text
    assert decoded_by_graph(graph, [ids]) == [text]


def test_batch_keeps_rows_apart(tokenizer, graph):
    texts = ["", *NASTY.values(), "", "a", "a", ""]
    ids = tokenizer.encode_batch(texts)
    assert graph.tokenize(texts).to_list() == ids == [tokenizer.encode(text) for text in texts]
    assert tokenizer.decode_batch(ids) == texts == decoded_by_graph(graph, ids)


def test_batches_without_text(graph, tokenizer):
    assert graph.tokenize(tf.constant([], tf.string)).to_list() == []
    assert graph.tokenize(["", ""]).to_list() == [[], []]
    assert decoded_by_graph(graph, [[], []]) == ["", ""]
    assert tokenizer.encode_batch([]) == tokenizer.decode_batch([]) == []
    assert tokenizer.decode([]) == ""


def test_random_unicode(tokenizer, graph):
    random_state = random.Random(17)
    ranges = [(0, 0x7F), (0x80, 0x2FF), (0x300, 0x36F), (0x600, 0xD7FF), (0x900, 0x97F)]
    ranges += [(0xE000, 0xFFFF), (0x1F300, 0x1FAFF)]
    ranges += [(plane << 16, (plane << 16) + 0xFFFF) for plane in range(1, 17)]

    def character():
        if random_state.random() < 0.4:
            return random_state.choice(" \t\r\n'aé1.\u00a0६")
        return chr(random_state.randint(*random_state.choice(ranges)))

    texts = ["".join(character() for _ in range(random_state.randrange(40))) for _ in range(600)]
    ids = tokenizer.encode_batch(texts)
    assert graph.tokenize(texts).to_list() == ids
    assert tokenizer.decode_batch(ids) == texts == decoded_by_graph(graph, ids)


def test_special_strings_are_ordinary_text(tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id) == (0, 1)
    trained_on_them = Tokenizer.train(["<|endoftext|> <|pad|>"] * 5, 400)
    for either in (tokenizer, trained_on_them):
        for ids in ids_of_both_sides(either, ["<|endoftext|>", "<|pad|>", "x<|pad|>"]):
            assert min(ids) >= 2


def test_decode_skips_special_ids_and_masked_ids(tokenizer, graph):
    ids = [0, *tokenizer.encode("the"), 1, *tokenizer.encode(" end"), 0, 0]
    assert tokenizer.decode(ids) == "the end"
    assert tokenizer.decode_batch(tf.constant([ids]).numpy()) == ["the end"]
    assert decoded_by_graph(graph, [ids]) == ["the end"]
    a, b = tokenizer.encode("a") + tokenizer.encode("b")
    token_ids = tf.constant([[a, b, b], [b, a, -1]])
    for mask in ([[1, 0, 1], [0, 1, 0]], [[True, False, True], [False, True, False]]):
        assert graph.detokenize(token_ids, tf.constant(mask)).numpy().tolist() == [b"ab", b"a"]


def test_invalid_utf8_becomes_replacement_character(tokenizer, graph):
    def decoded(data):
        ids = [2 + byte for byte in data]
        assert decoded_by_graph(graph, [ids]) == [tokenizer.decode(ids)]
        return tokenizer.decode(ids)

    assert decoded(b"a\xffb") == "a\ufffdb"
    assert decoded(b"\xe6\x9d") == "\ufffd"  # two of the three bytes of a character
    assert decoded(b"\xf0\x9f\x99 \x80") == "\ufffd \ufffd"
    random_state = random.Random(3)
    for _ in range(100):
        decoded(random_state.choices(range(256), k=12))


def test_training_is_exact_and_deterministic(tmp_path):
    # " ab" and "ab" hold a+b twice and space+a once; then space+ab remains, then nothing.
    small = Tokenizer.train(["ab ab"], 1000)
    small.save(tmp_path)
    assert merges_in_file(tmp_path) == [(b"a", b"b"), (b" ", b"ab")]
    assert small.vocabulary_size == 260
    assert ids_of_both_sides(small, ["ab ab b"]) == [[258, 259, 34, 100]]
    first, second = (Tokenizer.train(iter(CORPUS), 400) for _ in range(2))
    assert first.vocabulary_size == second.vocabulary_size == 400
    assert first.encode_batch(CORPUS) == second.encode_batch(CORPUS)


def test_smallest_vocabulary_is_the_bytes():
    tokenizer = Tokenizer.train(CORPUS, 258)
    assert tokenizer.vocabulary_size == 258
    assert ids_of_both_sides(tokenizer, ["é a"]) == [[197, 171, 34, 99]]


def test_save_and_load(tokenizer, tmp_path):
    folder = tmp_path / "new" / "folder"
    tokenizer.save(folder)
    loaded = Tokenizer.load(str(folder))
    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    texts = [*NASTY.values(), *CORPUS]
    assert loaded.encode_batch(texts) == tokenizer.encode_batch(texts)
    vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    assert (vocabulary["<|pad|>"], vocabulary["<|endoftext|>"]) == (0, 1)
    assert [vocabulary["Ġthe"]] == tokenizer.encode(" the")
    assert sorted(vocabulary.values()) == list(range(tokenizer.vocabulary_size))


def test_works_inside_dataset_map(tokenizer, graph):
    dataset = tf.data.Dataset.from_tensor_slices(CORPUS).batch(2)
    rows = [row for batch in dataset.map(graph.tokenize) for row in batch.to_list()]
    assert rows == tokenizer.encode_batch(CORPUS)


LOADER = """
import json, sys
import tensorflow as tf

model = tf.saved_model.load(sys.argv[1])
texts = json.load(open(sys.argv[2], encoding="utf-8"))
ids = model.tokenize(tf.constant(texts))
out = model.round_trip(tf.constant(texts)).numpy()
for module in ("tfppo", "keras_hub", "tokenizers", "tensorflow_text"):
    assert module not in sys.modules, module
json.dump([ids.to_list(), [text.decode() for text in out]], open(sys.argv[3], "w"))
"""


class Server(tf.Module):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def tokenize(self, texts):
        return self.graph.tokenize(texts)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def round_trip(self, texts):
        ids = self.graph.tokenize(texts)
        return self.graph.detokenize(ids.to_tensor(), tf.sequence_mask(ids.row_lengths()))


def test_saved_model_in_process_with_tensorflow_only(tokenizer, graph, tmp_path):
    tf.saved_model.save(Server(graph), tmp_path / "model")
    texts = list(NASTY.values())
    (tmp_path / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    arguments = [str(tmp_path / name) for name in ("model", "texts.json", "out.json")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOADER, *arguments]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment)
    ids, round_trip = json.loads((tmp_path / "out.json").read_text())
    assert ids == tokenizer.encode_batch(texts)
    assert round_trip == texts


def test_exported_graph_has_only_portable_ops(graph, tmp_path):
    from tensorflow.core.protobuf import saved_model_pb2

    tf.saved_model.save(Server(graph), tmp_path)
    saved_model = saved_model_pb2.SavedModel()
    saved_model.ParseFromString((tmp_path / "saved_model.pb").read_bytes())
    graph_def = saved_model.meta_graphs[0].graph_def
    ops = {node.op for function in graph_def.library.function for node in function.node_def}
    assert "LookupTableFindV2" in ops  # the search sees into the functions
    assert not [op for op in ops if op.startswith(("Xla", "PyFunc", "EagerPyFunc", "MutableHash"))]
    assert "RegexSplitWithOffsets" not in ops  # of tensorflow_text, which a server may lack


def test_user_errors_name_the_remedy(tokenizer, graph):
    with pytest.raises(UserError, match="vocabulary_size is 257; at least 258"):
        Tokenizer.train(CORPUS, 257)
    for takes_texts in (lambda t: Tokenizer.train(t, 300), tokenizer.encode_batch):
        with pytest.raises(UserError, match="pass a list"):
            takes_texts("one text")
    with pytest.raises(UserError, match="surrogate"):
        tokenizer.encode("half \ud83d")
    for bad_id in (-1, tokenizer.vocabulary_size):
        with pytest.raises(UserError, match=f"id {bad_id}: the vocabulary has the ids 0 to"):
            tokenizer.decode([5, bad_id])
        with pytest.raises(tf.errors.InvalidArgumentError):
            graph.detokenize(tf.constant([[5, bad_id]]), tf.ones([1, 2]))


@pytest.mark.parametrize("merges", [[(b"ab", b"c")], [(b"a", b"b"), (b"a", b"b")], [(b"a", b"")]])
def test_merges_out_of_order_are_refused(merges):
    with pytest.raises(UserError, match="merge .* does not make a new token"):
        Tokenizer(merges)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere.*Tokenizer.save"):
        Tokenizer.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["vocabulary.json", "merges.txt"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "binary", "foreign"])
def test_damaged_files(tokenizer, tmp_path, name, damage):
    tokenizer.save(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        cut = data[: data.index(b"\n", len(data) // 2) + 1] if b"\n" in data else data[:-9]
        damaged = {"empty": b"", "cut": cut, "binary": b"\xff" + data, "foreign": b'"x"'}
        path.write_bytes(damaged[damage])
    with pytest.raises(UserError, match=name):
        Tokenizer.load(tmp_path)


def test_merges_with_unknown_characters_or_parts(tokenizer, tmp_path):
    for line, reason in (("a \u4e00", "stands for no byte"), ("a b c", "values"), ("a", "values")):
        tokenizer.save(tmp_path)
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{line}\n", encoding="utf-8")
        with pytest.raises(UserError, match=f"merges.txt is damaged.*{reason}"):
            Tokenizer.load(tmp_path)

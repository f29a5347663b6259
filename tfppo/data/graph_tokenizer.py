"""The tokenizer as TensorFlow ops, for tf.data pipelines and for a SavedModel that takes strings.

Core TensorFlow ops only: the saved graph loads wherever TensorFlow does, without tensorflow_text.
"""

from collections.abc import Sequence

import tensorflow as tf

# Pairs are merged inside words only, and this pattern cuts text into words: a run of letters
# ("don't" is one run), of digits, or of other signs, each with one leading space if there is one;
# the remaining white space by itself. Every character outside ASCII counts as a letter, for tables
# of Unicode classes differ between libraries and versions, and ASCII does not. `_word_starts` is
# the same rule on bytes.
_LETTER = r"[^\x00-@\[-`{-\x7f]"
_SIGN = r"[\x00-\x08\x0e-\x1f!-/:-@\[-`{-\x7f]"
_BLANK = r"[\x09-\x0d\x20]"
WORD_PATTERN = (
    rf" ?{_LETTER}+(?:'{_LETTER}+)*| ?[0-9]+| ?{_SIGN}+"
    rf"|{_BLANK}+(?= [^\x09-\x0d\x20])|{_BLANK}+"
)

LETTER, DIGIT, SIGN, BLANK, EDGE = range(5)


def _byte_kind(byte: int) -> int:
    if byte >= 0x80 or chr(byte).isalpha():
        return LETTER
    if chr(byte).isdigit():
        return DIGIT
    return BLANK if chr(byte) in "\t\n\v\f\r " else SIGN


_BYTE_KINDS = tuple(_byte_kind(byte) for byte in range(256))


class GraphTokenizer(tf.Module):
    """Byte-level BPE in graph ops, with the ids of `Tokenizer.encode` for every UTF-8 text.

    `pieces` [V] holds the bytes of each token, empty for the special ones; the byte b has the id
    `first_byte_id` + b. `merges` are the id pairs in order of rank, and the pair of rank k makes
    the id `first_byte_id` + 256 + k, so that the lowest id is also the first to be merged.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        merges: Sequence[tuple[int, int]],
        first_byte_id: int,
    ):
        super().__init__(name="graph_tokenizer")
        self._vocabulary_size = len(pieces)
        self._first_byte_id = first_byte_id
        self._pieces = tf.constant(pieces)
        first_merged_id = first_byte_id + 256
        no_merge = self._vocabulary_size  # sorts after the ids of all merges
        id_of_pair = {self._pair_key(*pair): first_merged_id + i for i, pair in enumerate(merges)}
        id_of_pair[-1] = no_merge  # no pair has this key; TensorFlow refuses an empty table
        self._merged_ids = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(list(id_of_pair), tf.int64),
                tf.constant(list(id_of_pair.values()), tf.int32),
            ),
            default_value=no_merge,
        )

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def tokenize(self, strings: tf.Tensor) -> tf.RaggedTensor:
        """Encodes `strings` [B] as int32 ids, a ragged [B, None]."""
        num_rows = tf.size(strings, out_type=tf.int64)
        rows = tf.repeat(tf.range(num_rows), tf.strings.length(strings))
        text = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(strings), tf.uint8), tf.int32)
        starts = _word_starts(text, rows)
        words = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        word_rows = tf.boolean_mask(rows, starts)
        ids, words = self._merge(text + self._first_byte_id, words)
        rows = tf.gather(word_rows, words)
        return tf.RaggedTensor.from_value_rowids(ids, rows, nrows=num_rows, validate=False)

    @tf.function(reduce_retracing=True, autograph=False)
    def detokenize(self, token_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Decodes `token_ids` [B, R] where `mask` [B, R] is not 0 to UTF-8 strings [B].

        Special tokens decode to nothing, bytes that are not valid UTF-8 to U+FFFD.
        Raises tf.errors.InvalidArgumentError for ids outside the vocabulary.
        """
        # Masked ids are read as 0, so that a filler outside the vocabulary does no harm.
        mask = tf.cast(mask, tf.bool)
        pieces = tf.gather(self._pieces, tf.where(mask, token_ids, 0))
        text = tf.strings.reduce_join(tf.where(mask, pieces, ""), axis=-1)
        return tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace")

    def _merge(self, ids: tf.Tensor, words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Merges `ids` [N] within each of `words` [N] until no known pair is left."""

        def any_known_pair(ids, words, merged_ids):
            return tf.reduce_any(merged_ids < self._vocabulary_size)

        def merge_first_pair_of_each_word(ids, words, merged_ids):
            lowest = tf.gather(tf.math.segment_min(merged_ids, words), words)
            chosen = (merged_ids == lowest) & (merged_ids < self._vocabulary_size)
            chosen = _every_second_of_a_run(chosen)
            ids = tf.where(chosen, merged_ids, ids)
            kept = ~_shifted_right(chosen, False)
            ids, words = tf.boolean_mask(ids, kept), tf.boolean_mask(words, kept)
            return ids, words, self._merged_ids_of_pairs(ids, words)

        ids, words, _ = tf.while_loop(
            any_known_pair,
            merge_first_pair_of_each_word,
            (ids, words, self._merged_ids_of_pairs(ids, words)),
            shape_invariants=(tf.TensorShape([None]),) * 3,
        )
        return ids, words

    def _merged_ids_of_pairs(self, ids: tf.Tensor, words: tf.Tensor) -> tf.Tensor:
        """The id [N] that each of `ids` [N] makes with its right neighbour in the same word."""
        merged_ids = self._merged_ids.lookup(self._pair_key(ids, _shifted_left(ids, 0)))
        same_word = words == _shifted_left(words, -1)
        return tf.where(same_word, merged_ids, self._vocabulary_size)

    def _pair_key(self, left, right):
        if tf.is_tensor(left):
            left, right = tf.cast(left, tf.int64), tf.cast(right, tf.int64)
        return left * self._vocabulary_size + right


def _word_starts(text: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Which bytes of `text` [N] begin a word of WORD_PATTERN; `rows` [N] says whose string."""
    first, last = rows != _shifted_right(rows, -1), rows != _shifted_left(rows, -1)

    def neighbours(kind):
        before = tf.where(first, EDGE, _shifted_right(kind, EDGE))
        after = tf.where(last, EDGE, _shifted_left(kind, EDGE))
        return before, after

    kind = tf.gather(tf.constant(_BYTE_KINDS), text)
    before, after = neighbours(kind)
    inner_apostrophe = (text == ord("'")) & (before == LETTER) & (after == LETTER)
    kind = tf.where(inner_apostrophe, LETTER, kind)
    before, after = neighbours(kind)
    leading_space = (text == ord(" ")) & (after != BLANK) & (after != EDGE)
    # The first byte of a string always begins a word: no kind is EDGE.
    return leading_space | ((kind != before) & ~_shifted_right(leading_space, False))


def _every_second_of_a_run(chosen: tf.Tensor) -> tf.Tensor:
    """Keeps the 1st, 3rd, 5th ... of neighbouring True in `chosen` [N]: "aaa" holds "aa" once."""
    run_begins = chosen & ~_shifted_right(chosen, False)
    positions = tf.range(tf.size(chosen))
    begin_of_run = tf.boolean_mask(positions, run_begins)
    # Before the first run there is none to look up; those positions are not chosen anyway.
    run = tf.maximum(tf.cumsum(tf.cast(run_begins, tf.int32)) - 1, 0)
    return chosen & ((positions - tf.gather(begin_of_run, run)) % 2 == 0)


def _shifted_right(x: tf.Tensor, fill) -> tf.Tensor:
    return tf.concat([tf.cast(fill, x.dtype)[None], x[:-1]], axis=0)[: tf.size(x)]


def _shifted_left(x: tf.Tensor, fill) -> tf.Tensor:
    return tf.concat([x[1:], tf.cast(fill, x.dtype)[None]], axis=0)[: tf.size(x)]

"""Byte-level BPE for any UTF-8 text: training, encoding and decoding in Python, files."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import tensorflow as tf

from tfppo.data.chat import ChatTemplate, load_template
from tfppo.data.graph_tokenizer import WORD_PATTERN, GraphTokenizer
from tfppo.errors import UserError

VOCABULARY_FILE = "vocabulary.json"
MERGES_FILE = "merges.txt"
CHAT_TEMPLATE_FILE = "chat_template.json"  # only where the model was trained on chats

_MERGES_HEADER = "#version: 0.2"
_SPECIAL_TOKENS = ("<|pad|>", "<|endoftext|>")
_FIRST_BYTE_ID = len(_SPECIAL_TOKENS)
_SMALLEST_VOCABULARY = _FIRST_BYTE_ID + 256


def _byte_characters() -> list[str]:
    """The printable character that stands for each byte in the two files, as in GPT-2's."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


_BYTE_CHARACTERS = _byte_characters()
_BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(_BYTE_CHARACTERS)}


class Tokenizer:
    """Byte-level BPE in which every vocabulary entry beyond the bytes has exactly one merge.

    Ids: 0 pad, 1 end of text, then the 256 bytes, then the merges in order of rank. Special tokens
    have no text: "<|pad|>" in a text is encoded as the seven characters that it is.

    Raises UserError if a merge uses a token that no earlier merge made, or repeats one.
    """

    pad_id = 0
    eos_id = 1

    def __init__(self, merges: Sequence[tuple[bytes, bytes]]):
        self._pieces = [b""] * _FIRST_BYTE_ID + [bytes([byte]) for byte in range(256)]
        self._merges: list[tuple[int, int]] = []
        id_of_piece = {piece: index for index, piece in enumerate(self._pieces) if piece}
        for rank, (left, right) in enumerate(merges):
            merged = left + right
            if left not in id_of_piece or right not in id_of_piece or merged in id_of_piece:
                raise UserError(
                    f"merge {rank}, {left!r} + {right!r}, does not make a new token from two known "
                    "ones; pass the merges in the order in which they were learned, each once"
                )
            self._merges.append((id_of_piece[left], id_of_piece[right]))
            id_of_piece[merged] = len(self._pieces)
            self._pieces.append(merged)
        self._encoder = _encoder(self._vocabulary(), self._merges_as_text())
        self.chat_template: ChatTemplate | None = None  # how the model's chats are written; it is kept beside

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int) -> Self:
        """Learns up to `vocabulary_size` tokens from `texts`; fewer if the texts hold fewer.

        Raises UserError if `vocabulary_size` has no room for the bytes and the special tokens.
        """
        if vocabulary_size < _SMALLEST_VOCABULARY:
            raise UserError(
                f"vocabulary_size is {vocabulary_size}; at least {_SMALLEST_VOCABULARY} are needed "
                f"for 256 bytes and {len(_SPECIAL_TOKENS)} special tokens"
            )
        _refuse_single_string(texts)
        from tokenizers import pre_tokenizers, trainers

        encoder = _encoder({}, [])
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size - len(_SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        encoder.train_from_iterator(texts, trainer)
        merges = json.loads(encoder.to_str())["model"]["merges"]
        return cls([(_to_bytes(left), _to_bytes(right)) for left, right in merges])

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Self:
        """Reads what `save` wrote to `folder`.

        Raises UserError if a file is missing or damaged.
        """
        merges_path, vocabulary_path = _paths(folder)
        header, *lines = _read(merges_path).splitlines() or [""]
        try:
            if header != _MERGES_HEADER:
                raise ValueError(f"the first line is not {_MERGES_HEADER!r}")
            tokenizer = cls([_merge(line) for line in lines])
        except ValueError as error:
            raise UserError(_damaged(merges_path, error)) from error
        try:
            vocabulary = json.loads(_read(vocabulary_path))
        except json.JSONDecodeError as error:
            raise UserError(_damaged(vocabulary_path, error)) from error
        if vocabulary != tokenizer._vocabulary():
            raise UserError(_damaged(vocabulary_path, f"it does not agree with {merges_path}"))
        tokenizer.chat_template = cls.load_chat_template(folder)
        return tokenizer

    @staticmethod
    def load_chat_template(folder: str | os.PathLike) -> ChatTemplate | None:
        """The chat template in a folder that `save` wrote; None where there is none. Raises: UserError."""
        path = os.path.join(folder, CHAT_TEMPLATE_FILE)
        return load_template(path) if os.path.exists(path) else None

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `vocabulary.json`, `merges.txt` and the chat template, if any, to `folder`, made if missing."""
        merges_path, vocabulary_path = _paths(folder)
        tf.io.gfile.makedirs(os.fspath(folder))
        with tf.io.gfile.GFile(vocabulary_path, "w") as file:
            file.write(json.dumps(self._vocabulary(), ensure_ascii=False))
        with tf.io.gfile.GFile(merges_path, "w") as file:
            for line in (_MERGES_HEADER, *map(" ".join, self._merges_as_text())):
                file.write(line + "\n")
        if self.chat_template is not None:
            self.chat_template.save(os.path.join(folder, CHAT_TEMPLATE_FILE))

    def digest(self) -> str:
        """A fingerprint: equal for tokenizers that encode every text alike."""
        return hashlib.sha256(repr(self._merges).encode()).hexdigest()[:16]

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens V, special ones included: all ids are below it."""
        return len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without any special token. Raises UserError as `encode_batch` does."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each of `texts`; faster than `encode` in a loop.

        Raises UserError for what is no text, a lone surrogate included.
        """
        _refuse_single_string(texts)
        try:
            encodings = self._encoder.encode_batch_fast(list(texts))
        except TypeError as error:
            raise UserError(
                "a text is no str, or holds half of a surrogate pair and so has no UTF-8 form; "
                'mend it with text.encode("utf-8", "replace").decode()'
            ) from error
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids` [R], a sequence or an array; special tokens decode to nothing.

        Bytes that are not valid UTF-8 become U+FFFD. Raises UserError for ids outside the
        vocabulary.
        """
        numbers = np.asarray(ids)
        outside = (numbers < 0) | (numbers >= self.vocabulary_size)
        if outside.any():
            raise UserError(
                f"cannot decode the id {numbers[outside][0]}: the vocabulary has the ids 0 to "
                f"{self.vocabulary_size - 1}; decode with the tokenizer that made the ids"
            )
        return b"".join(self._pieces[i] for i in numbers.tolist()).decode("utf-8", errors="replace")

    def decode_batch(self, ids: Iterable[Sequence[int] | np.ndarray]) -> list[str]:
        """`decode` for each row of `ids`, an array [B, R] or sequences of any lengths."""
        return [self.decode(row) for row in ids]

    def graph_tokenizer(self) -> GraphTokenizer:
        """The same tokenizer as a tf.Module, to be called in a tf.function and exported."""
        return GraphTokenizer(self._pieces, self._merges, _FIRST_BYTE_ID)

    def _vocabulary(self) -> dict[str, int]:
        tokens = [*_SPECIAL_TOKENS, *map(_to_text, self._pieces[_FIRST_BYTE_ID:])]
        return {token: index for index, token in enumerate(tokens)}

    def _merges_as_text(self) -> list[tuple[str, str]]:
        texts = [_to_text(piece) for piece in self._pieces]
        return [(texts[left], texts[right]) for left, right in self._merges]


def _encoder(vocabulary: dict[str, int], merges: list[tuple[str, str]]):
    """The `tokenizers` library's encoder. Special tokens stay unknown to it, so none is parsed."""
    # Imported here, as most of the package does not need it and programs start faster without it.
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Encoder

    encoder = Encoder(models.BPE(vocabulary, merges))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return encoder


def _to_text(piece: bytes) -> str:
    return "".join(_BYTE_CHARACTERS[byte] for byte in piece)


def _to_bytes(token: str) -> bytes:
    if not _BYTE_OF_CHARACTER.keys() >= set(token):
        raise ValueError(f"{token!r} has a character that stands for no byte")
    return bytes(_BYTE_OF_CHARACTER[character] for character in token)


def _merge(line: str) -> tuple[bytes, bytes]:
    left, right = line.split(" ")
    return _to_bytes(left), _to_bytes(right)


def _paths(folder: str | os.PathLike) -> tuple[str, str]:
    return os.path.join(folder, MERGES_FILE), os.path.join(folder, VOCABULARY_FILE)


def _read(path: str) -> str:
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return file.read().decode("utf-8")
    except tf.errors.OpError as error:
        raise UserError(
            f"cannot read {path}: {error.message}; name the folder that Tokenizer.save wrote, or "
            "train the tokenizer again"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(_damaged(path, error)) from error


def _damaged(path: str, reason: object) -> str:
    return f"{path} is damaged: {reason}; copy it again or train the tokenizer again"


def _refuse_single_string(texts: Iterable[str]) -> None:
    if isinstance(texts, str):
        raise UserError("texts is a single string; pass a list of strings")

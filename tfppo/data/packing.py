"""Packs documents into sequences of one length for language-model training.

A sequence holds several documents. Each has its own segment number, so that documents do not attend to each other, and
its own positions from 0 on, as in sampling.
"""

from typing import NamedTuple

import numpy as np

from tfppo.data.shapes import Example
from tfppo.data.tokenizer import Tokenizer

# Inputs, targets, and the number of leading targets without weight.
_Piece = tuple[list[int], list[int], int]


class PackedSequences(NamedTuple):
    """N sequences of L positions; segment 0 is padding."""

    inputs: np.ndarray  # [N, L] int32
    targets: np.ndarray  # [N, L] int32, the token after each input
    weights: np.ndarray  # [N, L] float32, 1 where the target counts
    segment_ids: np.ndarray  # [N, L] int32
    positions: np.ndarray  # [N, L] int32


def encode_documents(examples: list[Example], tokenizer: Tokenizer) -> list[tuple[list[int], int]]:
    """Each example as (token ids with start token and EOS, number of leading targets of weight 0).

    Where the data has prompts, only tokens of the response have weight (supervised fine-tuning).
    """
    texts = tokenizer.encode_batch([example.text for example in examples])
    prompts = tokenizer.encode_batch([example.prompt or "" for example in examples])
    eos = tokenizer.eos_id
    return [([eos, *prompt, *text, eos], len(prompt)) for prompt, text in zip(prompts, texts, strict=True)]


def pack(documents: list[tuple[list[int], int]], length: int) -> PackedSequences:
    """Packs documents into sequences by first-fit decreasing.

    A document of more than `length` tokens is cut into pieces; each piece starts at position 0.
    """
    pieces: list[_Piece] = []
    for ids, skip in documents:
        for start in range(0, len(ids) - 1, length):
            piece = ids[start : start + length + 1]
            pieces.append((piece[:-1], piece[1:], max(skip - start, 0)))
    order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i][0]))
    rows: list[list[_Piece]] = []
    open_rows: list[list[list[_Piece]]] = [[] for _ in range(length + 1)]  # by the room that is left in them
    for i in order:
        size = len(pieces[i][0])
        room = next((room for room in range(size, length + 1) if open_rows[room]), None)
        row = open_rows[room].pop() if room is not None else []
        if room is None:
            rows.append(row)
            room = length
        row.append(pieces[i])
        open_rows[room - size].append(row)
    return _lay_out(rows, length)


def _lay_out(rows, length):
    packed = PackedSequences(*(np.zeros([len(rows), length], dtype) for dtype in _DTYPES))
    for number, row in enumerate(rows):
        start = 0
        for segment, (inputs, targets, skip) in enumerate(row, start=1):
            place = slice(start, start + len(inputs))
            packed.inputs[number, place] = inputs
            packed.targets[number, place] = targets
            packed.weights[number, start + skip : place.stop] = 1.0
            packed.segment_ids[number, place] = segment
            packed.positions[number, place] = np.arange(len(inputs))
            start = place.stop
    return packed


_DTYPES = (np.int32, np.int32, np.float32, np.int32, np.int32)

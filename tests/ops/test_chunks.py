"""A function of logits by chunks: its values and gradients against NumPy in float64, and which sizes are large."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.ops import chunks, sizes
from tfppo.ops.chunks import by_chunks, in_chunks, is_large
from tfppo.ops.logprobs import entropy, token_logprobs

WIDTH, COLUMNS = 5, 11


def figures_of(rows, matrix, labels):
    logits = tf.matmul(rows, matrix, transpose_b=True)
    return token_logprobs(logits, labels), entropy(logits)


def numbers(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(rows, matrix, labels, of_logprobs, of_entropies):
    """Log-probabilities, entropies and the gradients of rows and matrix, a row at a time."""
    rows, matrix = rows.astype(np.float64), matrix.astype(np.float64)
    logprobs, entropies = np.zeros(labels.shape), np.zeros(labels.shape)
    of_rows, of_matrix = np.zeros_like(rows), np.zeros_like(matrix)
    for n in np.ndindex(labels.shape):
        logits = matrix @ rows[n]
        logs = logits - np.log(np.exp(logits).sum())
        shares = np.exp(logs)
        logprobs[n], entropies[n] = logs[labels[n]], -(shares * logs).sum()
        of_logits = of_logprobs[n] * (np.eye(COLUMNS)[labels[n]] - shares)
        of_logits -= of_entropies[n] * shares * (logs + entropies[n])
        of_rows[n] = of_logits @ matrix
        of_matrix += np.outer(of_logits, rows[n])
    return logprobs, entropies, of_rows, of_matrix


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("at_once", [COLUMNS, 4 * COLUMNS, 1000])  # rows of 1, of 4, all of 14 in a chunk
def test_values_and_gradients_are_those_of_the_whole(monkeypatch, at_once, compiled):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(sizes, "TILE", 1)
    rows, matrix = numbers(2, 7, WIDTH, seed=0), numbers(COLUMNS, WIDTH, seed=1)
    labels = np.random.default_rng(2).integers(0, COLUMNS, [2, 7])
    upstream = numbers(2, 7, seed=3), numbers(2, 7, seed=4)

    @tf.function(jit_compile=compiled, autograph=False)
    def run(rows, matrix, labels, *upstream):
        with tf.GradientTape() as tape:
            tape.watch([rows, matrix])
            results = by_chunks(figures_of, rows, matrix, labels, num_results=2)
        return *results, *tape.gradient(results, [rows, matrix], upstream)

    found = run(*(tf.constant(array) for array in (rows, matrix, labels.astype(np.int32), *upstream)))
    for wanted, got in zip(plain(rows, matrix, labels, *upstream), found, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)


def test_several_tensors_may_go_by_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 3)
    monkeypatch.setattr(sizes, "TILE", 1)
    wide, narrow, labels = numbers(2, 4, 3, seed=0), numbers(2, 4, 2, seed=1), np.arange(8.0, dtype=np.float32)

    def function(wide, narrow, labels):
        assert labels.shape == [3]
        return tf.reduce_sum(wide, axis=-1) + labels, tf.reduce_max(narrow, axis=-1)

    found = in_chunks(function, wide, narrow, tf.reshape(labels, [2, 4]), num_columns=1, num_results=2)
    np.testing.assert_allclose(found[0], wide.sum(axis=-1) + labels.reshape(2, 4), rtol=1e-6)
    np.testing.assert_array_equal(found[1], narrow.max(axis=-1))


def test_the_gradient_of_the_matrix_is_added_up_in_float32(monkeypatch):
    """A thousand rows of 1, each a chunk: a sum in bfloat16 would stop growing at 256."""
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 1)
    monkeypatch.setattr(sizes, "TILE", 1)

    @tf.function(autograph=False)
    def run(rows, matrix):
        with tf.GradientTape() as tape:
            tape.watch(matrix)
            (result,) = by_chunks(
                lambda rows, matrix, _: (tf.cast(tf.matmul(rows, matrix, transpose_b=True)[:, 0], tf.float32),),
                rows,
                matrix,
                tf.zeros([1000], tf.int32),
                num_results=1,
            )
        return tape.gradient(result, matrix)

    found = run(tf.ones([1000, 1], tf.bfloat16), tf.ones([1, 1], tf.bfloat16))
    assert found.dtype == tf.bfloat16 and float(found[0, 0]) == 1000.0


def test_what_is_large(monkeypatch):
    monkeypatch.setattr(chunks, "LOGITS_AT_ONCE", 24)
    assert not is_large(tf.zeros([2, 3, WIDTH]), 4)
    assert is_large(tf.zeros([2, 3, WIDTH]), 5)

    @tf.function(input_signature=[tf.TensorSpec([2, None, WIDTH])], autograph=False)
    def of_unknown_length(rows):
        assert not is_large(rows, 1000)
        return rows

    of_unknown_length(tf.zeros([2, 3, WIDTH]))


def test_parts_are_of_like_size_in_whole_tiles(monkeypatch):
    monkeypatch.setattr(sizes, "TILE", 8)
    assert sizes.size_of_parts(100, 1, most=100) == 104  # 13 tiles
    assert sizes.size_of_parts(101, 2, most=101) == 56
    assert sizes.size_of_parts(3, 3, most=3) == 3
    assert sizes.size_of_parts(13, 4, most=4) == 4

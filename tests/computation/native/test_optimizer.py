"""Sums of squares, Adam and added rows through the native operations, against NumPy in float64."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from native_support import OPS, needs_bfloat16_ops

from tfppo.computation.native.embedding import add_rows
from tfppo.computation.native.optimizer import apply_adam, squared_norms

pytestmark = needs_bfloat16_ops
# Scalars, less than a vector, and more than the pieces that threads share, of both dtypes.
SHAPES = [[], [3], [16, 16], [333, 100], [40000]]
DTYPES = [tf.float32, tf.bfloat16, tf.bfloat16, tf.bfloat16, tf.float32]


def make_gradients(seed=0):
    rng = np.random.default_rng(seed)
    return [tf.cast(rng.normal(0.0, 1.0, shape), dtype) for shape, dtype in zip(SHAPES, DTYPES, strict=True)]


def as_float64(tensors):
    return [tf.cast(tensor, tf.float64).numpy() for tensor in tensors]


class Step:
    """Variables and their moments, and a step of Adam of them."""

    scales = np.array([1.0, 0.5, 2.0, 0.25, 1.0])
    rates = np.array([0.1, 0.2, 0.0, 0.3, 0.4])
    decays = np.array([0.0, 0.01, 0.02, 0.0, 0.1])

    def __init__(self):
        rng = np.random.default_rng(1)
        self.weights = [tf.Variable(rng.normal(0.0, 1.0, shape), dtype=tf.float32) for shape in SHAPES]
        self.momentums, self.velocities = ([tf.Variable(tf.zeros(shape)) for shape in SHAPES] for _ in range(2))

    def take(self, gradients):
        own = [tf.constant(numbers, tf.float32) for numbers in (self.scales, self.rates, self.decays)]
        apply_adam(
            OPS,
            gradients,
            self.weights,
            self.momentums,
            self.velocities,
            **dict(zip(("scales", "rates", "decays"), own, strict=True)),
            beta_1=0.9,
            beta_2=0.999,
            epsilon=tf.constant(1e-3),
        )


def test_squares_are_those_of_float64():
    gradients = make_gradients()
    expected = [np.square(gradient).sum() for gradient in as_float64(gradients)]
    np.testing.assert_allclose(squared_norms(OPS, gradients), expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_shows_in_its_own_sum_alone(bad):
    gradients = make_gradients()
    gradients[3] = tf.tensor_scatter_nd_update(gradients[3], [[332, 99]], [tf.cast(bad, tf.bfloat16)])
    assert np.isfinite(squared_norms(OPS, gradients)).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_are_those_of_the_paper(compiled):
    step = Step()
    take = tf.function(step.take) if compiled else step.take
    weights = as_float64(step.weights)
    momentums, velocities = ([np.zeros(shape) for shape in SHAPES] for _ in range(2))
    for number in range(3):
        gradients = make_gradients(number)
        take(gradients)
        for i, gradient in enumerate(as_float64(gradients)):
            gradient = step.scales[i] * gradient
            momentums[i] = 0.9 * momentums[i] + 0.1 * gradient
            velocities[i] = 0.999 * velocities[i] + 0.001 * gradient**2
            weights[i] *= 1.0 - step.decays[i]
            weights[i] -= step.rates[i] * momentums[i] / (np.sqrt(velocities[i]) + 1e-3)
    for found, expected in ((step.weights, weights), (step.momentums, momentums), (step.velocities, velocities)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_who_read_a_variable_keeps_what_it_was():
    step = Step()
    copy = tf.Variable(step.weights[3])  # TensorFlow lets both share one buffer until one of them is written to
    held, before = tf.convert_to_tensor(step.weights[3]), step.weights[3].numpy()
    step.take(make_gradients())
    assert (step.weights[3].numpy() != before).any()
    np.testing.assert_array_equal(held, before)
    np.testing.assert_array_equal(copy, before)


def test_a_gradient_of_another_size_is_refused():
    step = Step()
    gradients = make_gradients()
    gradients[1] = tf.zeros([4])
    before = [variable.numpy() for variable in step.weights]
    with pytest.raises(tf.errors.InvalidArgumentError, match="gradient's size"):
        step.take(gradients)
    for variable, expected in zip(step.weights, before, strict=True):
        np.testing.assert_array_equal(variable, expected)


@pytest.mark.parametrize("width", [1, 16, 37])
def test_rows_are_added_to_those_named(width):
    rng = np.random.default_rng(2)
    matrix, rows = rng.normal(0.0, 1.0, [7, width]), rng.normal(0.0, 1.0, [50, width])
    places = rng.integers(0, 6, 50)  # many of them more than once, and the last row never
    whole = tf.constant(matrix, tf.float32)
    sums = add_rows(OPS, whole, tf.constant(rows, tf.float32), tf.constant(places))
    expected = matrix.copy()
    np.add.at(expected, places, rows)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(whole, matrix.astype(np.float32))  # which somebody else still needs


def test_rows_beyond_the_matrix_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="row 3 of a matrix of 3"):
        add_rows(OPS, tf.zeros([3, 2]), tf.ones([2, 2]), tf.constant([0, 3]))


def test_rows_that_do_not_fit_are_refused():
    for rows, places in ((tf.ones([2, 3]), [0, 1]), (tf.ones([2, 2]), [0])):
        with pytest.raises(tf.errors.InvalidArgumentError, match="do not fit"):
            add_rows(OPS, tf.zeros([3, 2]), rows, tf.constant(places))


def test_a_step_needs_a_scale_and_a_gradient_for_every_variable():
    step, gradients = Step(), make_gradients()
    step.scales = step.scales[1:]
    with pytest.raises(tf.errors.InvalidArgumentError, match="a scale, a rate and a decay"):
        step.take(gradients)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a gradient for every variable|a scale"):
        Step().take([*gradients, gradients[0]])


def digest():
    step = Step()
    step.take(make_gradients())
    sums = add_rows(OPS, tf.zeros([3, 64]), tf.random.stateless_normal([500, 64], [0, 0]), tf.range(500) % 3)
    numbers = [*step.weights, *step.momentums, *step.velocities, squared_norms(OPS, make_gradients()), sums]
    return hashlib.sha256(b"".join(number.numpy().tobytes() for number in numbers)).hexdigest()

"""Both forms of Adam, weight decay and clipping, against published tables and by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tfppo.optimization import clip_by_global_norm, make_optimizer

RATE = 0.5


def make(name, variables, epsilon=1e-5, weight_decay=0.0):
    return make_optimizer(
        name, variables, learning_rate=RATE, beta_1=0.9, beta_2=0.999, epsilon=epsilon, weight_decay=weight_decay
    )


# For epsilon 1e-5: TensorFlow's form sqrt(.001) g / (sqrt(.001) g + 1e-5), PyTorch's g / (g + 1e-5).
@pytest.mark.parametrize(
    ("name", "gradient", "share"),
    [
        ("adam", 1e-4, 0.2403),
        ("adam", 1e-3, 0.7597),
        ("adam", 1e-5, 0.0307),
        ("adamw", 1e-4, 0.9091),
        ("adamw", 1e-3, 0.9901),
        ("adamw", 1e-5, 0.5),
    ],
)
def test_first_step_gives_the_published_table(name, gradient, share):
    weight = tf.Variable([2.0, 2.0])
    make(name, [weight]).apply([tf.constant([gradient, -gradient])], [weight])
    np.testing.assert_allclose(2.0 - weight.numpy(), [RATE * share, -RATE * share], atol=4e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_later_steps_are_those_of_the_papers(name):
    """Float64 loops: Kingma and Ba 2015, section 2 (efficient order), and Loshchilov and Hutter 2019, algorithm 2."""
    rng = np.random.default_rng(0)
    start = rng.normal(0.0, 1.0, [3, 2])
    weight = tf.Variable(start, dtype=tf.float32)
    decay = 0.1 if name == "adamw" else 0.0
    optimizer = make(name, [weight], epsilon=1e-3, weight_decay=decay)
    expected, first, second = start.copy(), np.zeros([3, 2]), np.zeros([3, 2])
    for step in range(1, 6):
        gradient = rng.normal(0.0, 1e-3, [3, 2])
        optimizer.apply([tf.constant(gradient, tf.float32)], [weight])
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        if name == "adam":
            rate = RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            expected -= rate * first / (np.sqrt(second) + 1e-3)
        else:
            expected -= RATE * decay * expected
            expected -= RATE * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-3)
    np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)


def test_weight_decay_leaves_vectors_and_scalars_alone():
    variables = [tf.Variable(tf.fill(shape, 2.0)) for shape in ([2, 2], [3], [])]
    make("adamw", variables, weight_decay=0.1).apply([tf.zeros_like(v) for v in variables], variables)
    np.testing.assert_allclose(variables[0], np.full([2, 2], 2.0 - RATE * 0.1 * 2.0), rtol=1e-6)
    np.testing.assert_array_equal(variables[1], [2.0, 2.0, 2.0])
    assert variables[2].numpy() == 2.0


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_some_variables_learn_at_another_rate(name):
    variables = [tf.Variable([2.0]), tf.Variable([2.0])]
    optimizer = make(name, variables)
    optimizer.scale_learning_rate(variables[1:], 3.0)
    optimizer.apply([tf.constant([1e-3])] * 2, variables)
    first, second = (2.0 - variable.numpy()[0] for variable in variables)
    assert first > 0.3
    np.testing.assert_allclose(second, 3.0 * first, rtol=1e-5)
    # And they follow the schedule.
    optimizer.learning_rate.assign(0.0)
    before = [variable.numpy() for variable in variables]
    optimizer.apply([tf.constant([1e-3])] * 2, variables)
    np.testing.assert_array_equal([variable.numpy() for variable in variables], before)


def test_gradients_are_clipped_by_their_common_norm():
    gradients = [tf.constant([3.0]), tf.constant([[0.0, 4.0]])]
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    np.testing.assert_allclose([norm, clipped[0][0], clipped[1][0, 1]], [5.0, 0.6, 0.8], rtol=1e-6)
    for max_norm in (0.0, 6.0):
        same, norm = clip_by_global_norm(gradients, max_norm)
        np.testing.assert_allclose([norm, same[0][0], same[1][0, 1]], [5.0, 3.0, 4.0], rtol=1e-6)
    zeros, norm = clip_by_global_norm([tf.zeros([2])], 1.0)
    np.testing.assert_array_equal([norm, *zeros[0]], [0.0, 0.0, 0.0])


def test_groups_are_clipped_apart():
    gradients = [tf.constant([3.0]), tf.constant([12.0]), tf.constant([4.0]), tf.constant([0.0])]
    clipped, norm = clip_by_global_norm(gradients, 1.0, [[0, 2], [1], [3]])
    np.testing.assert_allclose([float(part[0]) for part in clipped], [0.6, 1.0, 0.8, 0.0], rtol=1e-6)
    np.testing.assert_allclose(norm, 13.0, rtol=1e-6)  # of all of them
    clipped, _ = clip_by_global_norm(gradients, 6.0, [[0, 2], [1], [3]])
    np.testing.assert_allclose([float(part[0]) for part in clipped], [3.0, 6.0, 4.0, 0.0], rtol=1e-6)

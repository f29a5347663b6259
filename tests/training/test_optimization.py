"""Both forms of Adam, weight decay and clipping, against published tables and by hand; with and without C++."""

import numpy as np
import pytest
import tensorflow as tf
from native_support import OPS

from tfppo.computation.devices import has_fast_bfloat16
from tfppo.computation.differentiation import dense_gradients
from tfppo.computation.native.engine import NativeKernels
from tfppo.training.adam import Rest, scaled
from tfppo.training.optimization import clip_by_global_norm, clipping_scales, make_optimizer, sum_over_parts

RATE = 0.5


@pytest.fixture(params=["tensorflow", "native"])
def kernels(request):
    """The kernels that optimizers compute with; None: TensorFlow's own operations."""
    if request.param == "tensorflow":
        return None
    if not has_fast_bfloat16():
        pytest.skip("the processor does not multiply bfloat16 numbers")
    return NativeKernels(OPS)


@pytest.fixture
def make(kernels):
    def make(name, variables, epsilon=1e-5, weight_decay=0.0, beta_1=0.9, beta_2=0.999):
        settings = dict(beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, weight_decay=weight_decay)
        return make_optimizer(name, variables, learning_rate=RATE, kernels=kernels, **settings)

    return make


@pytest.fixture
def clip(kernels):
    """Clipped gradients, and their norm before."""
    if kernels is None:
        return clip_by_global_norm

    def clip(gradients, max_norm, groups=None):
        scales, norm = clipping_scales(gradients, max_norm, groups, kernels)
        return [scaled(*pair) for pair in zip(gradients, scales, strict=True)], norm

    return clip


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
def test_first_step_gives_the_published_table(make, name, gradient, share):
    weight = tf.Variable([2.0, 2.0])
    make(name, [weight]).apply([tf.constant([gradient, -gradient])], [weight])
    np.testing.assert_allclose(2.0 - weight.numpy(), [RATE * share, -RATE * share], atol=4e-5)


def naive_steps(name, start, gradients, decay):
    """Float64 loops: Kingma and Ba 2015, section 2 (efficient order), and Loshchilov and Hutter 2019, algorithm 2."""
    weight, first, second = start.copy(), np.zeros(start.shape), np.zeros(start.shape)
    for step, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        if name == "adam":
            rate = RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
            weight -= rate * first / (np.sqrt(second) + 1e-3)
        else:
            weight -= RATE * decay * weight
            weight -= RATE * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-3)
    return weight


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_later_steps_are_those_of_the_papers(make, name):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(0.0, 1.0, [3, 2]), rng.normal(0.0, 1e-3, [5, 3, 2])
    weight = tf.Variable(start, dtype=tf.float32)
    decay = 0.1 if name == "adamw" else 0.0
    optimizer = make(name, [weight], epsilon=1e-3, weight_decay=decay)
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32)], [weight])
    np.testing.assert_allclose(weight, naive_steps(name, start, gradients, decay), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scaled_first", [False, True])
@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_variables_at_rest_keep_all_they_have_and_count_their_own_steps(make, name, scaled_first):
    """Rest at first, and again later, when there are moments: as if those steps had not been, for the one alone."""
    rng = np.random.default_rng(1)
    start, gradients = rng.normal(0.0, 1.0, [3, 2]), rng.normal(0.0, 1e-3, [9, 3, 2])
    decay = 0.1 if name == "adamw" else 0.0
    resting, other = (tf.Variable(start, dtype=tf.float32) for _ in range(2))
    optimizer = make(name, [resting, other], epsilon=1e-3, weight_decay=decay)
    optimizer.let_rest([resting])
    rests, rested = [True, True, True, False, False, True, True, False, False], 0

    @tf.function
    def step(gradient, now, steps):
        with optimizer.resting(Rest(now, steps)):
            if scaled_first:
                optimizer.apply_scaled([2.0 * gradient] * 2, [tf.constant(0.5)] * 2)
            else:
                optimizer.apply([gradient] * 2)

    for gradient, now in zip(gradients, rests, strict=True):
        held = [resting, optimizer._momentums[0], optimizer._velocities[0]]
        before = [variable.numpy() for variable in held]
        step(tf.constant(gradient, tf.float32), tf.constant(now), tf.constant(rested))
        for variable, old in zip(held, before, strict=True):
            assert np.array_equal(variable.numpy(), old) == now
        rested += now
    own = [gradient for gradient, now in zip(gradients, rests, strict=True) if not now]
    np.testing.assert_allclose(resting, naive_steps(name, start, own, decay), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other, naive_steps(name, start, gradients, decay), rtol=1e-4, atol=1e-5)
    assert np.abs(resting.numpy() - start).max() > 0.05


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_moments_may_forget_at_once(make, name):
    """With both betas 0, a step is the rate times g / (|g| + epsilon)."""
    weight = tf.Variable([2.0, 2.0])
    optimizer = make(name, [weight], epsilon=0.5, beta_1=0.0, beta_2=0.0)
    for gradient in (tf.constant([7.0, 7.0]), tf.constant([1.5, -0.5])):
        weight.assign([2.0, 2.0])
        optimizer.apply([gradient], [weight])
    np.testing.assert_allclose(weight, [2.0 - RATE * 0.75, 2.0 + RATE * 0.5], rtol=1e-6)


def test_weight_decay_leaves_vectors_and_scalars_alone(make):
    variables = [tf.Variable(tf.fill(shape, 2.0)) for shape in ([2, 2], [3], [])]
    make("adamw", variables, weight_decay=0.1).apply([tf.zeros_like(v) for v in variables], variables)
    np.testing.assert_allclose(variables[0], np.full([2, 2], 2.0 - RATE * 0.1 * 2.0), rtol=1e-6)
    np.testing.assert_array_equal(variables[1], [2.0, 2.0, 2.0])
    assert variables[2].numpy() == 2.0


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_some_variables_learn_at_another_rate(make, name):
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


def test_gradients_are_clipped_by_their_common_norm(clip):
    gradients = [tf.constant([3.0]), tf.constant([[0.0, 4.0]])]
    clipped, norm = clip(gradients, 1.0)
    np.testing.assert_allclose([norm, clipped[0][0], clipped[1][0, 1]], [5.0, 0.6, 0.8], rtol=1e-6)
    for max_norm in (0.0, 6.0):
        same, norm = clip(gradients, max_norm)
        np.testing.assert_allclose([norm, same[0][0], same[1][0, 1]], [5.0, 3.0, 4.0], rtol=1e-6)
    zeros, norm = clip([tf.zeros([2])], 1.0)
    np.testing.assert_array_equal([norm, *zeros[0]], [0.0, 0.0, 0.0])


def test_groups_are_clipped_apart(clip):
    gradients = [tf.constant([3.0]), tf.constant([12.0]), tf.constant([4.0]), tf.constant([0.0])]
    clipped, norm = clip(gradients, 1.0, [[0, 2], [1], [3]])
    np.testing.assert_allclose([float(part[0]) for part in clipped], [0.6, 1.0, 0.8, 0.0], rtol=1e-6)
    np.testing.assert_allclose(norm, 13.0, rtol=1e-6)  # of all of them
    clipped, _ = clip(gradients, 6.0, [[0, 2], [1], [3]])
    np.testing.assert_allclose([float(part[0]) for part in clipped], [3.0, 6.0, 4.0, 0.0], rtol=1e-6)


def test_the_norm_of_bfloat16_gradients_is_a_float32_one(clip):
    gradients = [tf.fill([1000], tf.constant(0.1, tf.bfloat16)), tf.constant([2.0])]
    tenth = float(tf.constant(0.1, tf.bfloat16))
    _, norm = clip(gradients, 0.0)
    np.testing.assert_allclose(norm, np.sqrt(1000 * tenth**2 + 4.0), rtol=1e-6)  # bfloat16 would give 3.7 or 3.75


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_scaled_gradients_of_any_dtype_step_like_float32_ones(make, name):
    gradients = [tf.constant([0.5, -0.25], tf.bfloat16), tf.constant([[3.0]])]
    whole, lazy = ([tf.Variable([1.0, 2.0]), tf.Variable([[3.0]])] for _ in range(2))
    reference, optimizer = make(name, whole, weight_decay=0.1), make(name, lazy, weight_decay=0.1)
    for _ in range(3):
        reference.apply([tf.cast(gradients[0], tf.float32) * 0.5, gradients[1]])
        tf.function(optimizer.apply_scaled)(gradients, [tf.constant(0.5), None])
    for expected, variable in zip(whole, lazy, strict=True):
        np.testing.assert_allclose(variable, expected, rtol=1e-6)


def test_a_copy_shares_the_gradient_of_its_variable():
    table, matrix, unused = tf.Variable([[1.0], [2.0], [3.0]]), tf.Variable([[2.0]]), tf.Variable([5.0])
    copies = [tf.cast(table, tf.bfloat16), tf.cast(matrix, tf.bfloat16), None]
    with tf.GradientTape() as tape:
        tape.watch(copies[:2])
        rows = tf.gather(tf.convert_to_tensor(table), [1, 1, 2])  # gradient 1 for each row that is read
        products = tf.cast(copies[0] @ copies[1], tf.float32)  # 2 for the table; 1 + 2 + 3 for the matrix
        total = tf.reduce_sum(rows) + tf.reduce_sum(products)
    gradients = dense_gradients(tape, total, [table, matrix, unused], copies=copies)
    assert [gradient.dtype.name for gradient in gradients] == ["float32", "bfloat16", "float32"]
    for gradient, expected in zip(gradients, ([[2.0], [4.0], [3.0]], [[6.0]], [0.0]), strict=True):
        np.testing.assert_array_equal(tf.cast(gradient, tf.float32), expected)


def test_rows_that_are_read_add_to_the_gradient_of_a_copy(kernels):
    table, lookups = tf.Variable([[1.0], [2.0], [3.0]]), tf.Variable([[4.0], [5.0]])
    copy = tf.convert_to_tensor(table)
    with tf.GradientTape() as tape:
        tape.watch(copy)
        rows = tf.gather(tf.convert_to_tensor(table), [1, 1, 2]) * tf.gather(tf.convert_to_tensor(lookups), [0, 1, 1])
        total = tf.reduce_sum(rows) + tf.reduce_sum(copy * [[10.0], [20.0], [30.0]])
    gradients = dense_gradients(
        tape, total, [table, lookups], copies=[copy, None], add_rows=kernels and kernels.add_rows
    )
    np.testing.assert_array_equal(gradients[0], [[10.0], [20.0 + 4.0 + 5.0], [30.0 + 5.0]])
    np.testing.assert_array_equal(gradients[1], [[2.0], [2.0 + 3.0]])


def test_weights_decay_at_their_own_rates(make):
    """PyTorch's AdamW with parameter groups: w (1 - rate decay), then the step; gradients of 0 make none."""
    slow, fast, still = (tf.Variable([[2.0]]) for _ in range(3))
    optimizer = make("adamw", [slow, fast, still], weight_decay=0.1)
    optimizer.scale_learning_rate([fast], 3.0)
    optimizer.scale_learning_rate([still], 0.0)
    optimizer.apply([tf.zeros([1, 1])] * 3)
    expected = [2.0 * (1 - RATE * 0.1), 2.0 * (1 - 3 * RATE * 0.1), 2.0]
    np.testing.assert_allclose([variable.numpy().item() for variable in (slow, fast, still)], expected, rtol=1e-6)


@pytest.mark.parametrize("largest", range(3))
def test_of_parts_gradients_and_statistics_add_up_and_the_largest_error_stays(largest):
    gradients, sums, errors = [1.0, 10.0, 100.0], [[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]], [0.25, 0.125, 0.375]
    errors[largest] = 4.0

    def of_part(number):
        return [tf.constant([gradients[number]])], (tf.constant(sums[number]), tf.constant(errors[number]))

    (gradient,), (statistics, error) = sum_over_parts(of_part, 3)
    np.testing.assert_array_equal(gradient, [111.0])
    np.testing.assert_array_equal(statistics, [111.0, 222.0])
    assert error == 4.0

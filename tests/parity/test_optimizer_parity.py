"""Optimizers and learning rates: the rows L12 to L14, against the formula of TensorFlow's Adam and PyTorch's own."""

import numpy as np
import pytest
import tensorflow as tf
from reference_numbers import assert_close, float32, load

from tfppo.config.presets import openai_2019, openai_tldr_n_plus, trl
from tfppo.training.optimization import clip_by_global_norm, make_optimizer
from tfppo.training.schedules import scheduled_rate

NAMES = {"tensorflow": "adam", "torch": "adamw"}


def optimizer_for(form, variables, **arguments):
    defaults = dict(learning_rate=1.0, beta_1=0.9, beta_2=0.999, epsilon=1e-5, weight_decay=0.0)
    return make_optimizer(NAMES[form], variables, **defaults | arguments)


@pytest.mark.parametrize("form", ["tensorflow", "torch"])
@pytest.mark.parametrize("number", range(3))
def test_L12_C2_adam_first_step(form, number):
    case = load("optimizers")["first_step"][number]
    published = {1e-5: (0.0307, 0.5), 1e-4: (0.2403, 0.9091), 1e-3: (0.7597, 0.9901)}[case["gradient"]]
    variable = tf.Variable([[0.0]])
    optimizer_for(form, [variable]).apply([tf.constant([[case["gradient"]]])])
    np.testing.assert_allclose(-variable.numpy(), [[published[form == "torch"]]], atol=5.1e-5)
    # 1 - .999 in float32 is off by up to 3e-5 of itself (cancellation), and enters with its root.
    assert_close(-variable, [[case[form]]], rtol=2e-5)


@pytest.mark.parametrize("number", range(6))
def test_L12_adam_over_twenty_steps(number):
    """Gradients from 1e-5 to 1 in size; epsilon 1e-5 and 1e-8; weight decay, which leaves vectors alone."""
    fixture = load("optimizers")
    case = fixture["cases"][number]
    start = [float32(numbers) for numbers in fixture["start"]]
    variables = [tf.Variable(numbers) for numbers in start]
    optimizer = optimizer_for(
        case["form"],
        variables,
        epsilon=case["epsilon"],
        beta_2=case["beta_2"],
        weight_decay=case["weight_decay"],
    )
    for step, gradients in enumerate(fixture["gradients"]):
        optimizer.learning_rate.assign(scheduled_rate(step, 20, peak=fixture["peak"], schedule="linear"))
        optimizer.apply([tf.constant(float32(gradient)) for gradient in gradients])
        for variable, origin, expected in zip(
            variables, start, case["parameters"].get(str(step + 1), []), strict=False
        ):
            # What is compared is the way gone, not the place: 1 - beta_2^t cancels in float32 (up to 3e-5 at t = 1,
            # less later), and a variable near 2 has a rounding error of 1e-7 a step, next to a way of 1e-2.
            assert_close(variable - origin, np.array(expected) - origin, rtol=3e-5, name=f"step {step + 1}")


def test_L12_L13_the_recipes_have_epsilon_1e_5_and_no_decay():
    ziegler, n_plus = openai_2019().ppo, openai_tldr_n_plus().ppo
    assert (ziegler.optimizer, ziegler.adam_epsilon, ziegler.max_grad_norm) == ("adam", 1e-5, 0.0)
    assert (n_plus.optimizer, n_plus.adam_epsilon, n_plus.max_grad_norm) == ("adamw", 1e-5, 0.0)
    assert (trl().ppo.optimizer, trl().ppo.adam_epsilon, trl().ppo.max_grad_norm) == ("adamw", 1e-8, 0.0)


def test_L14_learning_rate_falls_linearly_by_the_update():
    rates = load("optimizers")["rates"]
    linear = [scheduled_rate(step, 8, peak=1e-5, schedule="linear") for step in range(8)]
    assert linear[0] == 1e-5 and np.isclose(linear[-1], 1e-5 / 8)
    assert_close(linear, rates["linear"], rtol=1e-9)
    warm = [scheduled_rate(step, 8, peak=1e-5, schedule="linear", warmup=3) for step in range(8)]
    assert_close(warm, rates["linear_with_warmup"], rtol=1e-9)
    cosine = [scheduled_rate(step, 8, peak=1e-6, schedule="cosine", warmup=2, floor=0.1) for step in range(8)]
    assert_close(cosine, rates["cosine_with_floor"], rtol=1e-9)
    assert {scheduled_rate(step, 8, peak=1e-5, schedule="constant") for step in range(8)} == {1e-5}


@pytest.mark.parametrize(("limit", "scale"), [(0.0, 1.0), (26.0, 1.0), (6.5, 0.5), (1.3, 0.1)])
def test_gradients_are_scaled_to_a_common_norm(limit, scale):
    gradients = [tf.constant([3.0, 4.0]), tf.constant([[12.0]])]
    clipped, norm = clip_by_global_norm(gradients, limit)
    assert_close(norm, 13.0)
    for gradient, result in zip(gradients, clipped, strict=True):
        assert_close(result, scale * gradient)


def test_groups_are_clipped_by_themselves():
    gradients = [tf.constant([3.0, 4.0]), tf.constant([[12.0]])]
    clipped, norm = clip_by_global_norm(gradients, 6.0, groups=[[0], [1]])
    assert_close(norm, 13.0)
    assert_close(clipped[0], [3.0, 4.0])
    assert_close(clipped[1], [[6.0]])

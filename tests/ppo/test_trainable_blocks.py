"""PPO of the top blocks alone: what learns learns as ever, and the rest keeps its last bit."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from computations import build_learner
from config_cases import ORIGINAL

from tfppo.config import Config, ModelConfig, PpoConfig, RewardConfig
from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ops.logprobs import token_logprobs
from tfppo.ppo.loss import make_loss
from tfppo.ppo.minibatches import Part
from tfppo.ppo.targets import prepare_targets
from tfppo.ppo.types import Rollout
from tfppo.stages.ppo import check_ppo
from tfppo.training.replicas import make_strategy

ROWS, PROMPT, RESPONSE, NUM_BLOCKS = 8, 3, 5, 3
KL_COEF, SEED = tf.constant(0.1), np.array([1, 2], np.int32)
# A step of Adam shows the size of its gradient where epsilon is large beside it.
RATE, EPSILON, MAX_NORM = 10.0, 10.0, 0.05


@functools.cache
def strategy():
    return make_strategy(1)


def make_policy(separate_critic=False, mlp_value_head=False):
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    with strategy().scope():
        language_model = LanguageModel(24, NUM_BLOCKS, 2, 8, 16, 16)
        language_model.set_weights([w + rng.normal(0.0, 0.3, w.shape) for w in language_model.get_weights()])
        policy = Policy(language_model, separate_critic, mlp_value_head)
    policy.value_kernel.assign(rng.normal(0.0, 0.3, policy.value_kernel.shape))
    return policy


def make_learner(policy, **changes):
    settings = dict(rollout_batch_size=ROWS, total_episodes=ROWS, ppo_epochs=1, num_minibatches=1, jit_compile=False)
    steps = dict(optimizer="adamw", learning_rate=RATE, adam_epsilon=EPSILON, max_grad_norm=MAX_NORM)
    dtype = changes.pop("dtype", None)
    if changes.get("critic") == "separate":
        steps["critic_learning_rate"] = RATE
    config = PpoConfig(**{**ORIGINAL, **settings, **steps, **changes})
    config.validate()
    return build_learner(policy, config, RewardConfig(), strategy(), dtype=dtype)


def top_variables(policy, num_blocks):
    """By hand: of each trunk, the last blocks and the norm; the value head."""
    critic = policy.critic
    head = [variable for variable in policy.variables if variable.name.startswith("value")]
    trunks = [policy.language_model.trunk, *([critic] if critic else [])]
    layers = [layer for trunk in trunks for layer in (*trunk.blocks[NUM_BLOCKS - num_blocks :], trunk.final_norm)]
    return [*head, *(variable for layer in layers for variable in layer.variables)]


def is_among(variable, others):
    return any(variable is other for other in others)


@functools.cache
def make_rollout():
    rng = np.random.default_rng(1)
    ids = tf.constant(rng.integers(1, 24, [ROWS, PROMPT + RESPONSE]), tf.int32)
    lengths = rng.integers(2, RESPONSE + 1, [ROWS, 1])
    mask = tf.constant(np.arange(RESPONSE) < lengths, tf.float32)
    batch = (ids[:, :PROMPT], tf.ones([ROWS, PROMPT], tf.int32), ids[:, PROMPT:], mask)
    logits, values = make_policy().response_outputs(*batch)
    logprobs = token_logprobs(logits, batch[2]) * mask
    ref_logprobs = logprobs + mask * rng.normal(0.0, 0.3, mask.shape).astype(np.float32)
    scores = tf.constant(rng.normal(0.5, 1.0, ROWS), tf.float32)
    return Rollout(*batch, logprobs, values * mask, ref_logprobs, scores, tf.fill([ROWS], False))


def gradients_of_all(policy, config):
    """Of the loss of the whole rollout, to every variable of the policy: one plain tape, everything watched."""
    targets, _ = prepare_targets(make_rollout(), config, RewardConfig(), KL_COEF)
    means = targets.response_mask / tf.reduce_sum(targets.response_mask)
    variables = policy.trainable_variables
    with tf.GradientTape() as tape:
        outputs = policy.response_outputs(*targets[:4])
        loss, _ = make_loss(targets, (means, means, means), config, 1.0, tf.constant(1.0)).of_logits(*outputs)
    gradients = tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")
    return [tf.convert_to_tensor(gradient).numpy().astype(np.float64) for gradient in gradients]


def steps_by_hand(policy, config):
    """What each variable loses in one step of AdamW, zeros for what does not learn; and the norms of the gradients.

    Clipped by the norm of what learns, of policy and separate critic apart.
    """
    gradients, variables = gradients_of_all(policy, config), policy.trainable_variables
    top = top_variables(policy, config.trainable_blocks)
    learns = [is_among(variable, top) for variable in variables]
    critics = [policy.value_kernel, policy.value_bias, *policy.critic.variables] if policy.critic else []
    sides = [is_among(variable, critics) for variable in variables]
    norms = [
        np.sqrt(sum((g**2).sum() for g, own, its in zip(gradients, learns, sides, strict=True) if own and its == side))
        for side in ((False, True) if critics else (False,))
    ]
    assert min(norms) > 2 * MAX_NORM
    clipped = [
        own * gradient * MAX_NORM / norms[side] for gradient, own, side in zip(gradients, learns, sides, strict=True)
    ]
    return [RATE * gradient / (np.abs(gradient) + EPSILON) for gradient in clipped], norms


@pytest.mark.parametrize(
    ("num_blocks", "changes"),
    [
        (NUM_BLOCKS, {"value_head": "mlp", "accumulation_steps": 2}),
        (2, {"critic": "separate", "gradient_checkpointing": True}),
        (1, {"jit_compile": True, "gradient_checkpointing": True}),
    ],
    ids=str,
)
def test_a_step_is_that_of_the_gradients_with_the_others_left_out(num_blocks, changes):
    policy = make_policy("critic" in changes, "value_head" in changes)
    learner = make_learner(policy, trainable_blocks=num_blocks, **changes)
    variables, (steps, norms) = policy.trainable_variables, steps_by_hand(policy, learner.config)
    before = [variable.numpy() for variable in variables]
    statistics = learner.update(make_rollout(), SEED, KL_COEF, tf.constant(1.0))
    np.testing.assert_allclose(statistics["policy/gradient_norm"], np.hypot.reduce(norms), rtol=1e-4)
    top = top_variables(policy, num_blocks)
    for variable, old, step in zip(variables, before, steps, strict=True):
        tolerance = dict(rtol=1e-3, atol=3e-7) if is_among(variable, top) else dict(rtol=0, atol=0)
        np.testing.assert_allclose(old - variable.numpy(), step, **tolerance, err_msg=variable.path)
    assert 0 < len(top) < len(variables)


@pytest.mark.parametrize("separate_critic", [False, True])
def test_the_optimizer_has_moments_of_what_learns_and_of_nothing_else(separate_critic):
    policy = make_policy(separate_critic)
    learner = make_learner(policy, trainable_blocks=1, critic="separate" if separate_critic else "shared")
    top = top_variables(policy, 1)
    assert len(learner.variables) == len(top) and all(is_among(variable, top) for variable in learner.variables)
    shapes = sorted(tuple(variable.shape) for variable in learner.optimizer.variables if len(variable.shape))
    assert shapes == sorted(2 * [tuple(variable.shape) for variable in top])
    assert len(policy.trainable_variables) == len(policy.variables) > len(top)  # nothing of the model says so


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_there_is_no_backward_pass_below(gradient_checkpointing):
    """Counted in the graph: a product has one of its inputs' gradient for each input that something depends on."""
    learner = make_learner(make_policy(), trainable_blocks=1, gradient_checkpointing=gradient_checkpointing)
    targets, _ = prepare_targets(make_rollout(), learner.config, RewardConfig(), KL_COEF)
    weights = (targets.response_mask,) * 3
    graph = learner._part_gradients.get_concrete_function(Part(targets, weights, None), tf.constant(1.0)).graph
    products = [operation for operation in graph.get_operations() if operation.type == "MatMul"]
    # Four a block, logits and value forward; backward two for each of the top block and the value, one for the logits.
    again = 4 if gradient_checkpointing else 0  # the top block, a second time
    assert len(products) == 4 * NUM_BLOCKS + 2 + again + 2 * 4 + 2 + 1


@pytest.mark.parametrize(("critic", "gradient_checkpointing"), [("shared", True), ("separate", False)])
def test_an_update_in_bfloat16_moves_what_learns(critic, gradient_checkpointing):
    policy = make_policy(critic == "separate")
    settings = dict(critic=critic, gradient_checkpointing=gradient_checkpointing, dtype="mixed_bfloat16")
    learner = make_learner(policy, trainable_blocks=2, **settings)
    steps, _ = steps_by_hand(policy, learner.config)
    before = [variable.numpy() for variable in policy.trainable_variables]
    learner.update(make_rollout(), SEED, KL_COEF, tf.constant(1.0))
    top = top_variables(policy, 2)
    for variable, old, step in zip(policy.trainable_variables, before, steps, strict=True):
        rounded = old - variable.numpy()
        if is_among(variable, top):
            assert np.linalg.norm(rounded - step) < 0.2 * np.linalg.norm(step), variable.path
        else:
            assert not np.any(rounded), variable.path


def test_the_critic_alone_learns_while_it_warms_up():
    policy = make_policy(separate_critic=True)
    before = policy.get_weights()
    rates = dict(critic="separate", critic_learning_rate=2 * RATE)
    learner = make_learner(policy, trainable_blocks=1, **rates)
    learner.update(make_rollout(), SEED, KL_COEF, tf.constant(0.0))
    head = [policy.value_kernel, policy.value_bias]
    own = [*head, *policy.critic.blocks[-1].variables, *policy.critic.final_norm.variables]
    for variable, old in zip(policy.variables, before, strict=True):
        assert np.any(variable.numpy() != old) == is_among(variable, own), variable.path


def test_more_blocks_than_there_are():
    message = r"ppo.trainable_blocks is 4; the model has 3 blocks; use at most so many, or None to train everything"
    with pytest.raises(UserError, match=message):
        make_learner(make_policy(), trainable_blocks=4)


def test_more_blocks_than_the_model_will_have_are_refused_before_it_is_trained(tmp_path):
    # And before they are found not to go with the rate of the embeddings: lowering them would not mend that.
    ppo = PpoConfig(trainable_blocks=3, embedding_learning_rate=1e-4)
    config = Config(model=ModelConfig(num_layers=2), ppo=ppo).validate()
    with pytest.raises(UserError, match="ppo.trainable_blocks is 3; the model has 2 blocks"):
        check_ppo(config, tmp_path)
    config.ppo.embedding_learning_rate = None
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "model.keras").touch()  # which may be of another size
    check_ppo(config, tmp_path)

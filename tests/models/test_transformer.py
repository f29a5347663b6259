"""The Transformer, the language model and the policy, against KerasHub's GPT-2 and a naive forward in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfppo.errors import UserError
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.models.transformer import Transformer
from tfppo.ops.arithmetic import Arithmetic
from tfppo.ops.attention import attention_within
from tfppo.ops.masking import causal_mask

SIZES = dict(vocabulary_size=70, num_layers=2, num_heads=3, hidden_dim=24, intermediate_dim=40, max_sequence_length=20)
PAD = 0


def scramble(model, seed=0, scale=0.25):
    """Gives every weight, biases, norms and value head included, a value that matters."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        centre = 1.0 if weight.name == "gamma" else 0.0
        weight.assign(centre + rng.normal(0, scale, weight.shape))
    return model


def tokens(*shape, seed=1):
    return np.random.default_rng(seed).integers(1, SIZES["vocabulary_size"], shape).astype(np.int32)


@pytest.fixture(scope="module")
def model():
    return scramble(LanguageModel(**SIZES))


@pytest.fixture(scope="module", params=[(False, False), (True, False), (True, True)], ids=["shared", "separate", "mlp"])
def policy(model, request):
    policy = scramble(Policy(LanguageModel(**SIZES), *request.param), seed=3)
    policy.language_model.set_weights(model.get_weights())
    return policy


def naive_norm(x, norm):
    gamma, beta = (np.asarray(weight, np.float64) for weight in (norm.gamma, norm.beta))
    mean, variance = np.mean(x), np.mean((x - np.mean(x)) ** 2)
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def naive_hidden(trunk, row):
    """Hidden states [T, D] of one row of tokens, position by position and head by head, in float64."""
    weights = lambda layer: (np.asarray(layer.kernel, np.float64), np.asarray(layer.bias, np.float64))  # noqa: E731
    dim, heads = SIZES["hidden_dim"], SIZES["num_heads"]
    x = (
        np.asarray(trunk.token_embedding, np.float64)[row]
        + np.asarray(trunk.position_embedding, np.float64)[: len(row)]
    )
    for block in trunk.blocks:
        kernel, bias = weights(block.qkv)
        qkv = [naive_norm(state, block.attention_norm) @ kernel + bias for state in x]
        context = np.zeros_like(x)
        for t in range(len(row)):
            for head in range(heads):
                part = slice(head * dim // heads, (head + 1) * dim // heads)
                query = qkv[t][:dim][part]
                scores = [query @ qkv[s][dim : 2 * dim][part] / np.sqrt(dim / heads) for s in range(t + 1)]
                shares = np.exp(scores - np.max(scores)) / np.sum(np.exp(scores - np.max(scores)))
                context[t, part] = sum(share * qkv[s][2 * dim :][part] for s, share in enumerate(shares))
        kernel, bias = weights(block.attention_out)
        x = x + context @ kernel + bias
        (kernel, bias), (kernel_out, bias_out) = weights(block.mlp_in), weights(block.mlp_out)
        inner = np.array([naive_norm(state, block.mlp_norm) for state in x]) @ kernel + bias
        gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
        x = x + gelu @ kernel_out + bias_out
    return np.array([naive_norm(state, trunk.final_norm) for state in x])


def naive_logits(model, row):
    return naive_hidden(model.trunk, row) @ np.asarray(model.trunk.token_embedding, np.float64).T


def naive_values(policy, row):
    hidden = naive_hidden(policy.critic or policy.language_model.trunk, row)
    if policy.mlp_value_head:
        kernel, bias = np.asarray(policy.value_hidden_kernel, np.float64), np.asarray(policy.value_hidden_bias)
        hidden = np.maximum(hidden @ kernel + bias, 0.0)
    return hidden @ np.asarray(policy.value_kernel, np.float64)[:, 0] + np.asarray(policy.value_bias)[0]


def assert_logits(actual, expected, tolerance=1e-5):
    """Equal but for PAD, whose logit is -1e9."""
    actual = np.asarray(actual)
    np.testing.assert_allclose(actual[..., 1:], expected[..., 1:], rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(actual[..., PAD], -1e9, rtol=1e-6)


def test_equals_the_naive_forward(model):
    ids = tokens(2, 9)
    hidden, logits = model.trunk(ids), model(ids)
    for row in range(2):
        np.testing.assert_allclose(hidden[row], naive_hidden(model.trunk, ids[row]), rtol=1e-5, atol=1e-5)
        assert_logits(logits[row], naive_logits(model, ids[row]))
    assert np.std(logits[..., 1:]) > 0.5  # the numbers are far enough apart for the tolerance to mean something


def test_equals_keras_hubs_gpt2(model):
    import keras_hub

    hub = keras_hub.models.GPT2Backbone(dropout=0.0, **SIZES)
    trunk, heads, dim = model.trunk, SIZES["num_heads"], SIZES["hidden_dim"]
    hub.token_embedding.embeddings.assign(trunk.token_embedding)
    hub.position_embedding.position_embeddings.assign(trunk.position_embedding)
    hub.layer_norm.set_weights([trunk.final_norm.gamma, trunk.final_norm.beta])
    for block, layer in zip(trunk.blocks, hub.transformer_layers, strict=True):
        layer._self_attention_layer_norm.set_weights([block.attention_norm.gamma, block.attention_norm.beta])
        layer._feedforward_layer_norm.set_weights([block.mlp_norm.gamma, block.mlp_norm.beta])
        attention = layer._self_attention_layer
        kernels = np.split(np.asarray(block.qkv.kernel), 3, axis=1)
        biases = np.split(np.asarray(block.qkv.bias), 3)
        for dense, kernel, bias in zip(
            (attention._query_dense, attention._key_dense, attention._value_dense), kernels, biases, strict=True
        ):
            dense.set_weights([kernel.reshape(dim, heads, -1), bias.reshape(heads, -1)])
        out_kernel = np.asarray(block.attention_out.kernel).reshape(heads, -1, dim)
        attention._output_dense.set_weights([out_kernel, block.attention_out.bias])
        layer._feedforward_intermediate_dense.set_weights([block.mlp_in.kernel, block.mlp_in.bias])
        layer._feedforward_output_dense.set_weights([block.mlp_out.kernel, block.mlp_out.bias])
    ids = tokens(3, 12)
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    expected = hub({"token_ids": ids, "padding_mask": mask})
    logits = hub.token_embedding(expected, reverse=True)
    real = mask > 0
    np.testing.assert_allclose(
        trunk(ids, mask).numpy()[real], expected.numpy()[real], rtol=1e-5, atol=1e-5, err_msg="hidden states"
    )
    assert_logits(model(ids, mask).numpy()[real], logits.numpy()[real])


def test_causal_mask_by_hand():
    mask = causal_mask(tf.constant([[1, 1, 2, 0]]))
    assert mask.numpy().astype(int).tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]]


def left_padded(rows, length):
    ids = np.full([len(rows), length], PAD, np.int32)
    mask = np.zeros([len(rows), length], np.int32)
    for number, row in enumerate(rows):
        ids[number, length - len(row) :], mask[number, length - len(row) :] = row, 1
    return ids, mask


@pytest.mark.parametrize("pads", [1, 4, 9])
def test_left_pads_change_nothing(model, pads):
    row = tokens(8)
    ids, mask = left_padded([row], 8 + pads)
    ids[0, :pads] = tokens(pads, seed=8)  # whatever stands there
    assert_logits(model(ids, mask)[0, pads:], naive_logits(model, row))


@pytest.mark.parametrize("pads", [1, 5])
def test_right_pads_change_nothing(model, pads):
    ids, mask = tokens(1, 8 + pads), np.array([[1] * 8 + [0] * pads])
    assert_logits(model(ids, mask)[0, :8], naive_logits(model, ids[0, :8]))


def test_packed_documents_are_as_separate_ones(model):
    documents = [tokens(7, seed=2), tokens(3, seed=3), tokens(6, seed=4)]
    sizes = [7, 3, 6]
    ids = np.concatenate([*documents, [PAD, PAD]])[None].astype(np.int32)
    segments = np.array([[1] * 7 + [2] * 3 + [3] * 6 + [0] * 2])
    positions = np.array([[*range(7), *range(3), *range(6), 0, 1]])
    packed = model(ids, segment_ids=segments, positions=positions)[0]
    for document, start in zip(documents, np.cumsum([0, *sizes[:-1]]), strict=True):
        assert_logits(packed[start : start + len(document)], naive_logits(model, document))


def test_the_cache_gives_what_a_full_forward_gives(policy):
    lengths, prompt_length, total = [1, 3, 5], 5, 11
    texts = [tokens(length + total - prompt_length, seed=length) for length in lengths]
    prompt_ids, prompt_mask = left_padded([text[:n] for text, n in zip(texts, lengths, strict=True)], prompt_length)
    steps = np.stack([text[n:] for text, n in zip(texts, lengths, strict=True)], axis=1)
    expected_logits = [naive_logits(policy.language_model, text) for text in texts]
    expected_values = [naive_values(policy, text) for text in texts]

    logits, values, cache = policy.prefill(prompt_ids, prompt_mask, total)
    slots = np.arange(total)
    for step in range(total - prompt_length + 1):
        for row, length in enumerate(lengths):
            assert_logits(logits[row], expected_logits[row][length - 1 + step])
            np.testing.assert_allclose(values[row], expected_values[row][length - 1 + step], rtol=1e-5, atol=1e-5)
        if step == total - prompt_length:
            break
        index = prompt_length + step
        visible = (slots >= prompt_length - np.array(lengths)[:, None]) & (slots <= index)
        logits, values, cache = policy.decode_step(steps[step], np.array(lengths) + step, index, visible, cache)


def test_call_and_response_outputs_of_the_policy(policy):
    prompts, response = [tokens(2, seed=5), tokens(4, seed=6)], tokens(2, 3, seed=7)
    prompt_ids, prompt_mask = left_padded(prompts, 4)
    response_mask = np.array([[1, 1, 1], [1, 1, 0]], np.float32)
    logits, values = policy.response_outputs(prompt_ids, prompt_mask, response, response_mask)
    model = policy.language_model
    lm_logits = model.logits(model.trunk.response_states(prompt_ids, prompt_mask, response, response_mask))
    assert logits.shape == lm_logits.shape == (2, 3, 70) and values.shape == (2, 3)
    for row, prompt in enumerate(prompts):
        text = np.concatenate([prompt, response[row]])
        states = slice(len(prompt) - 1, len(text) - 1)
        expected = naive_values(policy, text)
        real = response_mask[row] > 0
        assert_logits(logits.numpy()[row][real], naive_logits(policy.language_model, text)[states][real])
        assert_logits(lm_logits.numpy()[row][real], naive_logits(policy.language_model, text)[states][real])
        np.testing.assert_allclose(values.numpy()[row][real], expected[states][real], rtol=1e-5, atol=1e-5)
        all_logits, all_values = policy(text[None])
        assert_logits(all_logits[0], naive_logits(policy.language_model, text))
        np.testing.assert_allclose(all_values[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changed", range(4))
def test_no_output_sees_its_own_token(policy, changed):
    prompt_ids, prompt_mask = left_padded([tokens(3)], 4)
    response, mask = tokens(1, 4, seed=9), np.ones([1, 4], np.float32)
    other = response.copy()
    other[0, changed] = response[0, changed] % 69 + 1
    for before, after in zip(
        policy.response_outputs(prompt_ids, prompt_mask, response, mask),
        policy.response_outputs(prompt_ids, prompt_mask, other, mask),
        strict=True,
    ):
        np.testing.assert_array_equal(before[:, : changed + 1], after[:, : changed + 1])
        if changed < 3:
            assert np.abs(before - after)[:, changed + 1].max() > 1e-3


def test_a_new_policy_has_value_0_and_a_critic_like_the_actor(model):
    ids = tokens(2, 6)
    for separate in (False, True):
        logits, values = Policy(model, separate_critic=separate)(ids)
        np.testing.assert_array_equal(values, np.zeros([2, 6]))
        assert_logits(logits[0], naive_logits(model, ids[0]))
    critic = Policy(model, separate_critic=True).critic
    np.testing.assert_allclose(critic(ids), model.trunk(ids), atol=1e-6)
    assert not {id(weight) for weight in critic.weights} & {id(weight) for weight in model.weights}


def test_pad_has_no_share_in_any_probability(model):
    logits = model(tokens(2, 5))
    np.testing.assert_allclose(logits[..., PAD], -1e9, rtol=1e-6)
    assert np.all(tf.nn.softmax(logits)[..., PAD] == 0.0)
    other = scramble(LanguageModel(**SIZES, pad_id=5))(tokens(1, 5))
    np.testing.assert_allclose(other[..., 5], -1e9, rtol=1e-6)
    assert np.all(np.abs(other.numpy()[..., np.arange(70) != 5]) < 100)


@pytest.fixture(scope="module")
def dropping():
    return scramble(LanguageModel(**SIZES, dropout=0.3))


class TestDropout:
    def test_no_seed_is_no_dropout(self, dropping, model):
        ids = tokens(2, 9)
        assert_logits(dropping(ids)[0], naive_logits(model, ids[0]))

    def test_the_seed_decides(self, dropping):
        ids = tokens(2, 9)
        first, again, other, second_word = (
            dropping(ids, dropout_seed=tf.constant(seed)).numpy() for seed in ([1, 2], [1, 2], [3, 2], [1, 7])
        )
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 0.1
        assert np.abs(first - second_word).max() > 0.1
        assert np.abs(first - dropping(ids).numpy()).max() > 0.1

    def test_rate_0_ignores_the_seed(self, model):
        ids = tokens(2, 9)
        np.testing.assert_array_equal(model(ids, dropout_seed=tf.constant([1, 2])), model(ids))

    def test_each_of_a_blocks_two_outputs_is_dropped_by_itself_and_scaled_up(self):
        trunk = Transformer(**{**SIZES, "num_layers": 1}, dropout=0.25)
        block = trunk.blocks[0]
        for projection in (block.attention_out, block.mlp_out):
            projection.kernel.assign(tf.zeros_like(projection.kernel))
            projection.bias.assign(tf.ones_like(projection.bias))
        x = tf.zeros([400, 2, SIZES["hidden_dim"]])
        draws = block.states(x, attention_within(tf.ones([400, 2])), Arithmetic(), tf.constant([5, 6])).numpy()
        # Each number is the sum of two biases of 1, each kept with probability 3/4 and then worth 4/3.
        np.testing.assert_allclose(np.unique(draws.round(3)), [0, 1.333, 2.667], atol=1e-6)
        # Of 400 * 2 * 24 numbers, variance 2 * (1 / 0.75 - 1): the mean has sigma .0059.
        assert abs(draws.mean() - 2.0) < 4 * 0.0059
        # Both are kept with probability 9/16, sigma .0036; were the two masks one, it would be 3/4.
        assert abs(np.mean(draws > 2.0) - 9 / 16) < 4 * 0.0036


@pytest.fixture(scope="module")
def mixed(model):
    mixed = LanguageModel(**SIZES, dtype="mixed_bfloat16")
    mixed.set_weights(model.get_weights())
    return mixed


class TestMixedBfloat16:
    def test_weights_and_outputs_are_float32_and_logits_inside_bfloat16(self, mixed):
        policy = Policy(mixed, separate_critic=True)
        assert {weight.dtype for weight in policy.weights} == {"float32"}
        logits, values = policy(tokens(2, 6))
        assert logits.dtype == values.dtype == tf.float32
        prompt_ids, prompt_mask = left_padded([tokens(3), tokens(2)], 4)
        logits, values, ((pair, _), _) = policy.prefill(prompt_ids, prompt_mask, 6)
        assert (logits.dtype, values.dtype) == (tf.bfloat16, tf.float32)
        assert pair[0].dtype == pair[1].dtype == tf.bfloat16

    def test_matrices_cast_once_give_the_same_and_are_let_go_of(self, mixed):
        policy = Policy(mixed, separate_critic=True)
        batch = *left_padded([tokens(3), tokens(2)], 4), tokens(2, 6), np.ones([2, 6], np.float32)
        expected = [output.numpy() for output in policy.response_outputs(*batch)]
        projection = mixed.trunk.blocks[0].qkv
        kernel = projection.kernel.numpy()
        held = mixed.trunk.arithmetic.holding(policy.product_weights())
        assert held.read(projection.kernel).dtype == tf.bfloat16
        once = [output.numpy() for output in policy.response_outputs(*batch, arithmetic=held)]
        projection.kernel.assign(tf.zeros_like(projection.kernel))  # the cast ones count
        np.testing.assert_array_equal(policy.response_outputs(*batch, arithmetic=held)[0], once[0])
        for one, other in zip(once, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert not np.array_equal(policy.response_outputs(*batch)[0], expected[0])
        projection.kernel.assign(kernel)

    def test_computing_in_another_dtype_is_what_a_model_of_that_dtype_does(self, mixed, model):
        ids = tokens(2, 6)
        rounded = model.trunk.hidden_states(ids, arithmetic=Arithmetic(dtype="bfloat16"))
        assert rounded.dtype == tf.bfloat16
        np.testing.assert_array_equal(tf.cast(rounded, tf.float32), tf.cast(mixed.trunk(ids), tf.float32))
        assert model.trunk(ids).dtype == tf.float32
        assert {layer.dtype_policy.name for layer in model._flatten_layers()} == {"float32"}

    def test_computes_in_bfloat16_close_to_float32(self, mixed, model):
        ids = tokens(2, 9)
        assert mixed.trunk(ids).dtype == tf.bfloat16
        difference = np.abs(mixed(ids) - model(ids))[..., 1:]
        assert difference.max() > 1e-3 and difference.mean() < 0.05

    def test_logits_are_a_product_in_bfloat16_rounded_once(self, mixed):
        hidden = np.asarray(tf.cast(mixed.trunk(tokens(2, 9)), tf.float32), np.float64)
        embedding = np.asarray(tf.cast(tf.cast(mixed.trunk.token_embedding, tf.bfloat16), tf.float32), np.float64)
        expected = (hidden @ embedding.T)[..., 1:]
        logits = mixed(tokens(2, 9))
        assert logits.dtype == tf.float32
        # Half a unit in the last of 8 bits, and what the sum of the product rounds.
        np.testing.assert_allclose(logits[..., 1:], expected, rtol=2.0**-8, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_language_model_round_trips(dtype, tmp_path):
    model = scramble(LanguageModel(**SIZES, dropout=0.1, pad_id=2, dtype=dtype))
    ids = tokens(2, 9)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    rebuilt = LanguageModel.from_config(model.get_config())
    rebuilt.set_weights(model.get_weights())
    for copy in (loaded, rebuilt):
        assert isinstance(copy, LanguageModel)
        assert copy.get_config() == model.get_config()
        assert copy.trunk.compute_dtype == model.trunk.compute_dtype
        assert (copy.trunk.dropout, copy.pad_id, copy.max_sequence_length) == (0.1, 2, 20)
        np.testing.assert_array_equal(copy(ids), model(ids))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("separate_critic", [False, True])
def test_policy_round_trips(separate_critic, dtype, tmp_path):
    policy = scramble(Policy(LanguageModel(**SIZES, dtype=dtype), separate_critic))
    ids = tokens(2, 9)
    policy.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    rebuilt = Policy.from_config(policy.get_config())
    rebuilt.set_weights(policy.get_weights())
    for copy in (loaded, rebuilt):
        assert isinstance(copy, Policy)
        assert copy.separate_critic == separate_critic
        assert copy.compute_dtype == policy.compute_dtype
        for actual, expected in zip(copy(ids), policy(ids), strict=True):
            np.testing.assert_array_equal(actual, expected)
    assert np.abs(loaded(ids)[1]).max() > 0.1


def test_from_config_leaves_the_config_as_it_was():
    config = Policy(LanguageModel(**SIZES)).get_config()
    keys = set(config)
    Policy.from_config(config)
    assert set(config) == keys


@pytest.mark.parametrize(
    "field, value",
    [
        ("vocabulary_size", 0),
        ("num_layers", 0),
        ("num_heads", 0),
        ("num_heads", 5),
        ("hidden_dim", -24),
        ("intermediate_dim", 0),
        ("max_sequence_length", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
    ],
)
def test_bad_sizes_are_named(field, value):
    with pytest.raises(UserError, match=rf"model\.{field} is {value}"):
        LanguageModel(**{**SIZES, field: value})

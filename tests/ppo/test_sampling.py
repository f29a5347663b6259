"""Sampling, against an uncached forward, a float64 search of the cumulative sum and naive filters."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from native_support import OPS, needs_compiler

from tfppo.computation.graph import GraphEngine
from tfppo.computation.native.engine import NativeEngine
from tfppo.models.language_model import LanguageModel
from tfppo.models.policy import Policy
from tfppo.ppo.drawing import draw_tokens, draw_uniforms, filter_logits
from tfppo.ppo.sampling import sample

PAD, STOP = 0, 1
VOCABULARY, PROMPT, RESPONSE, BATCH = 90, 5, 12, 6
ALMOST_1 = 1.0 - 2.0**-23

NATIVE = pytest.param("native", marks=needs_compiler)


@functools.cache
def make_engine(name):
    if name == "native":
        return NativeEngine(OPS, "float32", compiles_filters=False)
    return GraphEngine("float32", compiled=name != "graph", fixed_shapes=name == "gpu")


@pytest.fixture(params=["graph", NATIVE])
def engine(request):
    """What computes: a test that takes it holds for plain graphs and for the operations for CPUs."""
    return make_engine(request.param)


@functools.cache
def make_policy(separate_critic=False, mlp_value_head=False, positions=20, **biased):
    """A policy with weights that matter; `biased` are logits that hold in every state, by the token's number."""
    rng = np.random.default_rng(0)
    policy = Policy(LanguageModel(VOCABULARY, 2, 2, 16, 32, positions), separate_critic, mlp_value_head)
    policy.set_weights([rng.normal(0, 0.4, weight.shape) for weight in policy.weights])
    if biased:
        trunk = policy.language_model.trunk
        trunk.final_norm.gamma.assign(np.zeros(16))
        trunk.final_norm.beta.assign(np.ones(16))
        embedding = trunk.token_embedding.numpy()
        for token, logit in biased.items():
            embedding[int(token)] = logit / 16
        trunk.token_embedding.assign(embedding)
    return policy


# Sampled without a stop at these temperatures, which the tests share: each is traced once for all of them.
SHARED, SEPARATE, MLP = ((False, False), 0.7), ((True, False), 1.3), ((False, True), 0.7)


@pytest.fixture(params=[SHARED, SEPARATE, MLP], ids=["shared", "separate", "mlp"])
def any_policy(request):
    """A policy and a temperature."""
    critic, temperature = request.param
    return make_policy(*critic), temperature


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    ids = rng.integers(2, VOCABULARY, [BATCH, PROMPT]).astype(np.int32)
    mask = (np.arange(PROMPT) >= np.array([0, 1, 4, 2, 0, 3])[:, None]).astype(np.int32)
    return ids * mask, mask


def uniforms(seed=0, batch=BATCH, length=RESPONSE):
    return np.random.default_rng(seed).random([batch, length]).astype(np.float32) * np.float32(ALMOST_1)


@functools.cache
def sampler(engine, policy, length, **arguments):
    signature = [tf.TensorSpec([None, None], tf.int32)] * 2 + [tf.TensorSpec([None, length], tf.float32)]
    function = functools.partial(sample, policy, engine=engine, pad_id=PAD, **arguments)
    return tf.function(function, input_signature=signature, autograph=False)


@functools.cache
def forward(policy):
    return tf.function(lambda ids: policy(ids), input_signature=[tf.TensorSpec([None, None], tf.int32)])


def run(engine, policy, prompts, numbers, **arguments):
    """Samples of a graph that is traced once for all tests with these arguments."""
    function = sampler(engine, policy, numbers.shape[1], **arguments)
    return as_arrays(function(*map(tf.constant, prompts), tf.constant(numbers)))


def run_once(engine, policy, prompts, numbers, **arguments):
    """The same by one operation after the other: tracing a graph takes longer than a single run."""
    rows = *map(tf.constant, prompts), tf.constant(numbers)
    return as_arrays(sample(policy, *rows, engine=engine, pad_id=PAD, **arguments))


def as_arrays(samples):
    return type(samples)(*(np.asarray(part) for part in samples))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def uncached(policy, prompts, samples, row):
    """Logits [n, V] and values [n] before each of the n sampled tokens of a row; no padding, no cache, all at once."""
    prompt = prompts[0][row][prompts[1][row] > 0]
    count = int(samples.response_mask[row].sum())
    text = np.concatenate([prompt, samples.response_ids[row, :count]])
    logits, values = forward(policy)(text[None])
    states = slice(len(prompt) - 1, len(text) - 1)
    return np.asarray(logits, np.float64)[0, states], np.asarray(values)[0, states]


def filter_naively(logits, top_k, top_p):
    """One row, token by token, in float64."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    weights = np.exp(np.asarray(logits, np.float64) - max(logits))
    probabilities = weights / weights.sum()
    kept, mass = [], 0.0
    for rank, token in enumerate(order):
        if (top_k and rank >= top_k) or (rank > 0 and top_p < 1.0 and mass >= top_p):
            break
        kept.append(token)
        mass += probabilities[token]
    return sorted(kept)


def test_logprobs_and_values_are_those_of_a_full_forward(engine, any_policy, prompts):
    policy, temperature = any_policy
    samples = run(engine, policy, prompts, uniforms(), stop_id=None, temperature=temperature)
    assert samples.response_mask.all() and not samples.stopped.any()
    for row in range(BATCH):
        logits, values = uncached(policy, prompts, samples, row)
        expected = log_softmax(logits / temperature)[np.arange(RESPONSE), samples.response_ids[row]]
        np.testing.assert_allclose(samples.logprobs[row], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(samples.values[row], values, rtol=1e-4, atol=1e-4)
    assert samples.logprobs.std() > 0.1 and samples.values.std() > 0.1


@pytest.mark.parametrize("any_policy", [SHARED, SEPARATE], ids=["0.7", "1.3"], indirect=True)
def test_every_token_is_where_its_uniform_says(engine, any_policy, prompts):
    policy, temperature = any_policy
    numbers = uniforms(3)
    samples = run(engine, policy, prompts, numbers, stop_id=None, temperature=temperature)
    for row in range(BATCH):
        cdf = np.exp(log_softmax(uncached(policy, prompts, samples, row)[0] / temperature)).cumsum(-1)
        for step, token in enumerate(samples.response_ids[row]):
            edges = np.concatenate([[0.0], cdf[step]])
            assert edges[token] - 1e-5 <= numbers[row, step] <= edges[token + 1] + 1e-5


def test_the_logprobs_are_those_of_the_filtered_distribution(engine, prompts):
    policy = make_policy()
    samples = run_once(engine, policy, prompts, uniforms(4), stop_id=None, temperature=0.8, top_k=7, top_p=0.8)
    for row in range(BATCH):
        logits = uncached(policy, prompts, samples, row)[0] / 0.8
        for step, token in enumerate(samples.response_ids[row]):
            kept = filter_naively(logits[step], 7, 0.8)
            assert token in kept
            expected = log_softmax(logits[step][kept])[kept.index(token)]
            np.testing.assert_allclose(samples.logprobs[row, step], expected, rtol=1e-4, atol=1e-4)


STOPPING = dict(stop_id=7, temperature=0.7)  # a token that some rows come to, and others do not


def test_the_uniforms_decide_row_by_row(engine, prompts):
    policy, numbers = make_policy(), uniforms(6)
    first, again = (run(engine, policy, prompts, numbers, **STOPPING) for _ in range(2))
    other = run(engine, policy, prompts, uniforms(7), **STOPPING)
    np.testing.assert_array_equal(first.response_ids, again.response_ids)
    assert np.mean(first.response_ids != other.response_ids) > 0.5
    # A row depends on nothing but itself: in another batch, its text is the same.
    part = run(engine, policy, [array[2:4] for array in prompts], numbers[2:4], **STOPPING)
    np.testing.assert_array_equal(part.response_ids, first.response_ids[2:4])
    np.testing.assert_allclose(part.logprobs, first.logprobs[2:4], rtol=1e-4, atol=1e-5)


def test_more_left_padding_changes_nothing(engine, prompts):
    policy, wide = make_policy(), [np.pad(array, [[0, 0], [3, 0]]) for array in prompts]
    narrow_samples = run(engine, policy, prompts, uniforms(8), **STOPPING)
    wide_samples = run(engine, policy, wide, uniforms(8), **STOPPING)
    np.testing.assert_array_equal(narrow_samples.response_ids, wide_samples.response_ids)
    np.testing.assert_allclose(narrow_samples.logprobs, wide_samples.logprobs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(narrow_samples.values, wide_samples.values, rtol=1e-4, atol=1e-5)


def test_the_stop_token_counts_and_nothing_after_it(engine, prompts):
    policy, stop_id = make_policy(), STOPPING["stop_id"]
    free = run(engine, policy, prompts, uniforms(9), stop_id=None, temperature=0.7)
    samples = run(engine, policy, prompts, uniforms(9), **STOPPING)
    assert 0 < samples.stopped.sum() < BATCH
    for row in range(BATCH):
        hits = np.flatnonzero(free.response_ids[row] == stop_id)
        assert samples.stopped[row] == (len(hits) > 0)
        count = hits[0] + 1 if len(hits) else RESPONSE
        assert samples.response_mask[row].tolist() == [1.0] * count + [0.0] * (RESPONSE - count)
        np.testing.assert_array_equal(samples.response_ids[row, :count], free.response_ids[row, :count])
        np.testing.assert_allclose(samples.logprobs[row, :count], free.logprobs[row, :count], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(samples.values[row, :count], free.values[row, :count], rtol=1e-5, atol=1e-6)
        assert (samples.response_ids[row, count:] == PAD).all()
        assert not samples.logprobs[row, count:].any() and not samples.values[row, count:].any()


VALUED = dict(stop_id=61, temperature=1.3, value_after_stop=True)


def test_the_value_after_the_stop_token(engine, prompts):
    """At the first padding position: the value of the state that a full forward over the whole text ends in."""
    policy, numbers = make_policy(separate_critic=True), uniforms(9)
    free = run(engine, policy, prompts, numbers, stop_id=None, temperature=1.3)
    samples = run(engine, policy, prompts, numbers, **VALUED)
    lengths = samples.response_mask.sum(axis=1).astype(int)
    assert lengths.min() < RESPONSE == lengths.max()
    for row, length in enumerate(lengths):
        stops = np.flatnonzero(free.response_ids[row] == VALUED["stop_id"])
        assert samples.stopped[row] == (len(stops) > 0) and length == (stops[0] + 1 if len(stops) else RESPONSE)
        np.testing.assert_array_equal(samples.response_ids[row, :length], free.response_ids[row, :length])
        assert (samples.response_ids[row, length:] == PAD).all() and not samples.logprobs[row, length:].any()
        for name in ("logprobs", "values"):
            found, expected = getattr(samples, name)[row, :length], getattr(free, name)[row, :length]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        if length < RESPONSE:
            text = np.concatenate([prompts[0][row][prompts[1][row] > 0], samples.response_ids[row, :length]])
            expected = np.asarray(forward(policy)(text[None])[1])[0, -1]
            assert abs(expected) > 1e-2
            np.testing.assert_allclose(samples.values[row, length], expected, rtol=1e-4, atol=1e-5)
        assert not samples.values[row, length + 1 :].any()


def test_jit_gives_the_same_text(prompts):
    policy = make_policy(separate_critic=True)
    plain, compiled = (run(make_engine(name), policy, prompts, uniforms(5), **VALUED) for name in ("graph", "xla"))
    np.testing.assert_array_equal(plain.response_ids, compiled.response_ids)
    np.testing.assert_array_equal(plain.response_mask, compiled.response_mask)
    np.testing.assert_array_equal(plain.stopped, compiled.stopped)
    np.testing.assert_allclose(plain.logprobs, compiled.logprobs, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plain.values, compiled.values, rtol=1e-4, atol=1e-4)


def test_the_value_after_a_stop_that_every_row_takes_at_once(engine, prompts):
    policy = make_policy(positions=PROMPT + 1, **{str(STOP): 200.0})
    samples = run_once(engine, policy, prompts, uniforms(10), stop_id=STOP, value_after_stop=True)
    np.testing.assert_array_equal(samples.response_mask, [[1] + [0] * (RESPONSE - 1)] * BATCH)
    assert (np.abs(samples.values[:, :2]) > 1e-3).all() and not samples.values[:, 2:].any()


def test_the_loop_ends_when_every_row_has_stopped(engine, prompts):
    """The model has no position beyond the prompt, so that any step of the loop would fail."""
    policy = make_policy(positions=PROMPT, **{str(STOP): 200.0})
    samples = run_once(engine, policy, prompts, uniforms(10), stop_id=STOP)
    assert samples.stopped.all()
    np.testing.assert_array_equal(samples.response_ids, [[STOP] + [PAD] * (RESPONSE - 1)] * BATCH)
    np.testing.assert_array_equal(samples.response_mask, [[1] + [0] * (RESPONSE - 1)] * BATCH)
    with pytest.raises(tf.errors.InvalidArgumentError):
        run_once(engine, policy, prompts, uniforms(10), stop_id=None)


def test_the_last_token_may_be_the_stop_token(engine, prompts):
    numbers = uniforms(11, length=1)
    free = run_once(engine, make_policy(), prompts, numbers, stop_id=None)
    samples = run_once(engine, make_policy(), prompts, numbers, stop_id=int(free.response_ids[3, 0]))
    np.testing.assert_array_equal(samples.response_ids, free.response_ids)
    np.testing.assert_array_equal(samples.stopped, free.response_ids[:, 0] == free.response_ids[3, 0])
    assert samples.response_mask.all()


@pytest.mark.parametrize("arguments", [{}, {"temperature": 0.0}, {"temperature": 0.1}, {"top_k": 1}, {"top_p": 0.01}])
def test_pad_is_never_sampled(engine, prompts, arguments):
    policy = make_policy(**{str(PAD): 480.0})
    numbers = uniforms(12)
    numbers[0], numbers[1] = 0.0, ALMOST_1
    samples = run_once(engine, policy, prompts, numbers, stop_id=None, **arguments)
    assert (samples.response_ids != PAD).all() and (samples.response_ids < VOCABULARY).all()
    assert samples.logprobs.min() > -30


def test_temperature_0_is_greedy(engine, prompts):
    policy = make_policy()
    samples = run_once(engine, policy, prompts, uniforms(13), stop_id=None, temperature=0.0)
    other = run_once(engine, policy, prompts, uniforms(14), stop_id=None, temperature=0.0)
    np.testing.assert_array_equal(samples.response_ids, other.response_ids)
    for row in range(BATCH):
        logits, _ = uncached(policy, prompts, samples, row)
        np.testing.assert_array_equal(samples.response_ids[row], logits.argmax(-1))
        np.testing.assert_allclose(samples.logprobs[row], log_softmax(logits).max(-1), rtol=1e-4, atol=1e-4)


def draw_of(engine, logits, numbers):
    """The engine's tokens [B] of logits [B, V]."""
    draw = engine.piece(engine.drawer(draw_tokens, temperature=1.0, filtered=False))
    return draw(tf.constant(logits), tf.constant(numbers))[0].numpy()


class TestDraw:
    @pytest.mark.parametrize("size", [2, 7, 63, 64, 65, 128, 200, 1000])
    def test_equals_searchsorted(self, engine, size):
        self.check(engine, size)

    @pytest.mark.parametrize("size", [64, 1000])
    def test_equals_searchsorted_under_xla(self, size):
        self.check(make_engine("xla"), size)

    def check(self, engine, size):
        rng = np.random.default_rng(size)
        logits = rng.normal(0, 2, [500, size]).astype(np.float32)
        numbers = uniforms(size, 500, 1)[:, 0]
        drawn = draw_of(engine, logits, numbers)
        probabilities = np.exp(log_softmax(logits))
        cdf = probabilities.cumsum(-1)
        exact = [np.searchsorted(row, u * row[-1], side="right") for row, u in zip(cdf, numbers, strict=True)]
        near_an_edge = np.abs(cdf - numbers[:, None]).min(-1) < 1e-6  # float32 may round these to the neighbour
        assert near_an_edge.mean() < 0.05
        assert drawn.dtype == np.int32
        np.testing.assert_array_equal(drawn[~near_an_edge], np.array(exact)[~near_an_edge])

    def test_by_hand(self, engine):
        logits = np.log(np.array([[0.25, 0.5, 0.25]] * 7, np.float32))
        numbers = np.array([0.0, 0.24, 0.26, 0.5, 0.74, 0.76, ALMOST_1], np.float32)
        assert draw_of(engine, logits, numbers).tolist() == [0, 0, 1, 1, 1, 2, 2]

    @pytest.mark.parametrize("size", [1, 50, 64, 100, 256])
    def test_ends_of_the_interval(self, engine, size):
        drawn = draw_of(engine, np.zeros([2, size], np.float32), np.array([0.0, ALMOST_1], np.float32))
        assert drawn.tolist() == [0, size - 1]

    @pytest.mark.parametrize("size", [70, 300])
    def test_never_a_token_of_no_probability(self, engine, size):
        """Only every third token is possible, and whole blocks of 64 have none at all."""
        rng = np.random.default_rng(size)
        logits = np.where(np.arange(size) % 3 == 2, rng.normal(0, 3, [4000, size]), -1e9).astype(np.float32)
        logits[:, 64:128] = -1e9
        logits[:, 0] = -1e9
        numbers = uniforms(1, 4000, 1)[:, 0]
        numbers[:1000], numbers[1000:2000] = 0.0, ALMOST_1
        numbers[2000:3000] = 1.0 - np.arange(1, 1001) * 2.0**-23
        drawn = draw_of(engine, logits, numbers)
        assert (logits[np.arange(4000), drawn] > -1e8).all()
        assert (drawn[:1000] == 2).all()

    @pytest.mark.parametrize("size", [40, 150])
    def test_frequencies(self, engine, size):
        """1e5 draws: every token within 4 sigma of its probability, and chi-square within 4 sigma of its mean."""
        draws = 100_000
        rng = np.random.default_rng(17)
        logits = rng.normal(0, 1.5, [1, size]).astype(np.float32)
        probabilities = np.exp(log_softmax(logits[0]))
        numbers = draw_uniforms(tf.constant([3, 4]), draws, 1)[:, 0]
        counts = np.bincount(draw_of(engine, np.repeat(logits, draws, 0), numbers), minlength=size)
        sigma = np.sqrt(draws * probabilities * (1 - probabilities))
        assert (np.abs(counts - draws * probabilities) < 4 * sigma + 1).all()
        chi_square = ((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum()
        assert abs(chi_square - (size - 1)) < 4 * np.sqrt(2 * (size - 1))


class TestFilterLogits:
    @pytest.mark.parametrize(
        "top_k, top_p", [(1, 1.0), (5, 1.0), (0, 0.5), (0, 0.9), (0, 0.999), (5, 0.5), (3, 0.99), (200, 0.7), (30, 1.0)]
    )
    def test_equals_the_naive_filter(self, top_k, top_p):
        logits = np.random.default_rng(2).normal(0, 2, [50, 30]).astype(np.float32)
        filtered = filter_logits(tf.constant(logits), top_k=top_k, top_p=top_p).numpy()
        for row in range(50):
            kept = filter_naively(logits[row].tolist(), top_k, top_p)
            expected = np.full(30, -1e9)
            expected[kept] = logits[row, kept]
            np.testing.assert_array_equal(filtered[row], expected.astype(np.float32))

    @pytest.mark.parametrize("arguments", [{}, {"top_k": 4}, {"top_k": 1000}])
    def test_off_or_larger_than_the_vocabulary(self, arguments):
        logits = tf.constant([[1.0, 3.0, 2.0, 0.0]])
        np.testing.assert_array_equal(filter_logits(logits, **arguments), logits)

    @pytest.mark.parametrize("top_p", [1e-9, 0.3])
    def test_the_likeliest_always_stays(self, top_p):
        assert filter_logits(tf.constant([[1.0, 3.0, 2.0]]), top_p=top_p).numpy().tolist() == [[-1e9, 3.0, -1e9]]

    def test_by_hand(self):
        logits = tf.math.log([[0.1, 0.4, 0.2, 0.3]])
        kept = lambda **arguments: np.flatnonzero(filter_logits(logits, **arguments)[0] > -1e8).tolist()  # noqa: E731
        assert kept(top_k=2) == [1, 3]
        assert kept(top_p=0.39) == [1]
        assert kept(top_p=0.41) == [1, 3]
        assert kept(top_p=0.71) == [1, 2, 3]
        assert kept(top_p=0.91) == [0, 1, 2, 3]
        assert kept(top_k=2, top_p=0.95) == [1, 3]
        assert kept(top_k=3, top_p=0.5) == [1, 3]

    def test_ties_at_the_edge_stay_together(self):
        logits = tf.constant([[1.0, 2.0, 1.0, 0.0]])
        assert filter_logits(logits, top_k=2).numpy().tolist() == [[1.0, 2.0, 1.0, -1e9]]


class TestDrawUniforms:
    def test_range_distribution_and_steps(self):
        numbers = draw_uniforms(tf.constant([1, 2]), 1000, 200).numpy().astype(np.float64)
        assert numbers.dtype == np.float64 and numbers.shape == (1000, 200)
        assert 0.0 <= numbers.min() < 1e-4 and 1 - 1e-4 < numbers.max() <= ALMOST_1
        scaled = numbers * 2**23
        np.testing.assert_array_equal(scaled, np.round(scaled))
        assert (scaled % 2 == 1).mean() == pytest.approx(0.5, abs=0.005)  # the lowest bit is used
        # 20 bins of 1e4 expected, sigma 97.5; mean .5 with sigma 6.5e-4
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
        assert np.abs(counts - 10_000).max() < 4 * 97.5
        assert abs(numbers.mean() - 0.5) < 4 * 6.5e-4
        assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 4 / np.sqrt(1000)
        assert len(np.unique(numbers[:, 0])) > 990

    def test_the_seed_decides(self):
        first, again, other, second_word = (
            draw_uniforms(tf.constant(seed), 3, 4).numpy() for seed in ([1, 2], [1, 2], [2, 2], [1, 3])
        )
        np.testing.assert_array_equal(first, again)
        assert not np.isin(first, other).any() and not np.isin(first, second_word).any()

    def test_jit_changes_nothing(self):
        compiled = tf.function(lambda seed: draw_uniforms(seed, 7, 9), jit_compile=True)
        np.testing.assert_array_equal(compiled(tf.constant([5, 6])), draw_uniforms(tf.constant([5, 6]), 7, 9))


@pytest.mark.parametrize(
    ("engine", "size", "value_after_stop"),
    [("graph", 16, True), ("xla", 8, False), ("gpu", 8, True), pytest.param("native", 16, True, marks=needs_compiler)],
    indirect=["engine"],
)
def test_rows_that_go_on_in_smaller_batches_get_what_they_would_get_in_the_whole(engine, size, value_after_stop):
    """Of 16 rows most stop early: the loop goes on with 8 and with 4, and the rows keep their places."""
    policy = make_policy(**{str(STOP): 5.0})
    policy.value_bias.assign([0.25])
    rng = np.random.default_rng(5)
    prompts = rng.integers(2, VOCABULARY, [size, PROMPT]).astype(np.int32), np.ones([size, PROMPT], np.int32)
    numbers, settings = uniforms(3, size), dict(stop_id=STOP, value_after_stop=value_after_stop)
    plain = make_engine("graph") if engine.compiled else engine
    whole = run(plain, policy, prompts, numbers, **settings)  # whose graph is of any number of rows
    lengths = whole.response_mask.sum(axis=1)
    assert np.sort(lengths)[-5] < lengths.max()  # the batch of 4 has a use
    shrunk = run_once(engine, policy, prompts, numbers, **settings)
    for name in ("response_ids", "response_mask", "stopped"):
        np.testing.assert_array_equal(getattr(shrunk, name), getattr(whole, name), err_msg=name)
    np.testing.assert_allclose(shrunk.logprobs, whole.logprobs, atol=1e-5)
    np.testing.assert_allclose(shrunk.values, whole.values, atol=1e-6)


def test_on_a_gpu_one_program_samples_all_rows_to_their_end(monkeypatch):
    """Every batch of another size would be compiled anew."""
    engine, sizes = make_engine("gpu"), []

    def piece(function):
        def called(*arguments):
            results = function(*arguments)
            sizes.append((function.__name__, results.tokens.shape[0], int(results.step)))
            return results

        return called

    monkeypatch.setattr(engine, "piece", piece)
    monkeypatch.setattr(engine, "decoder", make_engine("graph").decoder)
    monkeypatch.setattr(engine, "write_slot", make_engine("graph").write_slot)
    prompts = np.full([8, PROMPT], 3, np.int32), np.ones([8, PROMPT], np.int32)
    sample(make_policy(), *prompts, uniforms(3, 8), engine=engine, stop_id=STOP, pad_id=PAD, temperature=0.7)
    assert sizes == [("start", 8, RESPONSE)]

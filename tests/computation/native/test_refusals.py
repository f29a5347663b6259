"""Inputs and attributes that do not fit are refused with a message, by every operation; nothing else is touched."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from native_support import OPS, needs_bfloat16_ops, needs_compiler

pytestmark = needs_compiler

ROWS, LENGTH, SLOTS, WIDTH, HEADS, INNER, TOKENS, STATES = 2, 3, 5, 9, 3, 7, 11, 4
# What operations take, by name: a number is an attribute, a list are several inputs.
FLOAT32 = ("extend", "extend_more", "logits", "draw")
BFLOAT16 = ("extend_rounded", "logits_rounded", "pack", "head", "head_gradient", "trunk", "trunk_gradient", "add_rows")
OPERATIONS = [*FLOAT32, *(pytest.param(name, marks=needs_bfloat16_ops) for name in BFLOAT16)]
# Axes that may be one longer, as no other input has their size, or packing and padding round it up.
FREE_SIZES = {
    "extend": {("x", 1), ("real", 1)},
    "extend_more": {("x", 1)},
    "logits": {("hidden", 0), ("embedding", 0)},
    "draw": {("logits", 1)},
    "extend_rounded": {("x", 1), ("real", 1), ("vectors 6", 0)},
    "logits_rounded": {("hidden", 0), ("hidden", 1)},
    "pack": {("matrix", 0), ("matrix", 1)},
    "head": {("embedding", 0)},
    "head_gradient": {("embedding", 0)},
    "add_rows": {("matrix", 0)},
}
WITH_HEADS = [OPERATIONS[i] for i in (0, 1, 4, 9, 10)]


def zeros(*shape, dtype=tf.float32):
    return tf.zeros(shape, dtype)


def weights():
    """Of one block and the final norm."""
    block = ([WIDTH], [WIDTH], [WIDTH, 3 * WIDTH], [3 * WIDTH], [WIDTH, WIDTH], [WIDTH])
    block += ([WIDTH], [WIDTH], [WIDTH, INNER], [INNER], [INNER, WIDTH], [WIDTH])
    return [tf.zeros(shape) for shape in (*block, [WIDTH], [WIDTH])]


def extend():
    real = tf.ones([ROWS, SLOTS], tf.bool)
    x = zeros(ROWS, LENGTH, WIDTH)
    return dict(x=x, start=0, real=real, caches=[], num_grown=2, weights=weights(), num_heads=HEADS, epsilon=1e-5)


def extend_more():
    caches = [zeros(ROWS, HEADS, SLOTS, WIDTH // HEADS) for _ in range(2)]
    return {**extend(), "caches": caches}


def extend_rounded():
    arguments = extend()
    given = arguments.pop("weights")
    arguments["matrices"] = [OPS.tfppo_pack(matrix=part, transposed=0) for part in given if len(part.shape) == 2]
    arguments["vectors"] = [part for part in given if len(part.shape) == 1]
    caches = [zeros(ROWS, HEADS, SLOTS + 1, WIDTH // HEADS, dtype=tf.bfloat16) for _ in range(2)]  # an even number
    return {**arguments, "caches": caches}


def logits():
    return dict(hidden=zeros(STATES, WIDTH), embedding=zeros(TOKENS, WIDTH), masked=0, penalty=-1.0)


def logits_rounded():
    return {**logits(), "embedding": OPS.tfppo_pack(matrix=zeros(TOKENS, WIDTH), transposed=1), "num_tokens": TOKENS}


def draw():
    return dict(logits=zeros(ROWS, TOKENS), uniforms=zeros(ROWS), temperature=1.0)


def pack():
    return dict(matrix=zeros(TOKENS, WIDTH), transposed=0)


def head():
    return {**logits(), "tokens": zeros(STATES, dtype=tf.int32), "temperature": 1.0, "keep": 1}


def head_gradient():
    made = OPS.tfppo_head(**head())._asdict()
    return {**head(), **made, "dlogprobs": zeros(STATES), "dentropies": zeros(STATES)}


def trunk():
    real = tf.ones([ROWS, LENGTH], tf.bool)
    attributes = dict(num_blocks=1, num_heads=HEADS, start=1, epsilon=1e-5, keep=1)
    return dict(x=zeros(ROWS, LENGTH, WIDTH), real=real, weights=weights(), **attributes)


def trunk_gradient():
    arguments = trunk()
    made = OPS.tfppo_trunk(**arguments)
    for name in ("x", "num_blocks", "keep"):
        del arguments[name]
    return {**arguments, "kept": made.kept, "last": made.last, "upstream": made.hidden} | dict(
        num_matrices=4, num_vectors=10
    )


def add_rows():
    return dict(matrix=zeros(TOKENS, WIDTH), rows=zeros(STATES, WIDTH), places=zeros(STATES, dtype=tf.int32))


def run(name, **changes):
    """The operation of arguments that fit, but for the changes."""
    return getattr(OPS, f"tfppo_{name.removesuffix('_more')}")(**{**globals()[name](), **changes})


def refused(name, pattern, **changes):
    with pytest.raises(tf.errors.InvalidArgumentError, match=pattern):
        run(name, **changes)


def inputs_of(name):
    """Of every input a label, its value, and a function from another value to a change of the arguments."""
    for argument, value in globals()[name]().items():
        if isinstance(value, list):
            for i, part in enumerate(value):
                changed = partial(lambda argument, before, after, other: {argument: [*before, other, *after]}, argument)
                yield f"{argument} {i}", part, partial(changed, value[:i], value[i + 1 :])
        elif tf.is_tensor(value):
            yield argument, value, partial(lambda argument, other: {argument: other}, argument)


@pytest.mark.parametrize("name", OPERATIONS)
def test_inputs_that_fit_are_taken(name):
    run(name)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_input_has_its_rank(name):
    for _, value, changed in inputs_of(name):
        for other in (value[None], tf.reshape(value, [-1])[0]):
            given = re.escape(str(other.shape.as_list()))
            refused(name, rf"\w+( of block 0)? has shape {given}, wanted is \[.+\]", **changed(other))


@pytest.mark.parametrize("name", OPERATIONS)
def test_sizes_fit_each_other(name):
    free = set()
    for label, value, changed in inputs_of(name):
        for axis in range(len(value.shape)):
            longer = tf.concat([value, tf.gather(value, [0], axis=axis)], axis)
            try:
                run(name, **changed(longer))
                free.add((label, axis))
            except tf.errors.InvalidArgumentError as error:
                assert re.search("wanted is|does not divide the width", error.message), (label, axis, error.message)
    assert free == FREE_SIZES.get(name, set())


@pytest.mark.parametrize("heads", [-2, 0, 4, 100])
@pytest.mark.parametrize("name", WITH_HEADS)
def test_heads_divide_the_width(name, heads):
    refused(name, f"num_heads is {heads}, which does not divide the width D = {WIDTH}", num_heads=heads)


@pytest.mark.parametrize("name", WITH_HEADS)
def test_blocks_have_all_their_weights(name):
    argument = "vectors" if name == "extend_rounded" else "weights"
    given = globals()[name]()[argument]
    changes = {"num_vectors": 9} if name == "trunk_gradient" else {argument: given[:-1]}
    wanted = {"vectors": "num_vectors is 9, wanted is 10", "weights": r"num_\w+ is \d+, wanted is 1\d"}[argument]
    refused(name, f"{wanted} for 1 blocks", **changes)


@pytest.mark.parametrize("name", ["extend", "extend_more", pytest.param("extend_rounded", marks=needs_bfloat16_ops)])
def test_caches_come_in_pairs(name):
    cache = globals()["extend_more" if name == "extend" else name]()["caches"][0]
    refused(name, "num_caches is 1, wanted is 2 for 1 blocks", caches=[cache])
    refused(name, "num_grown is 3, wanted is 2 for 1 blocks", num_grown=3)


@pytest.mark.parametrize("start", [-1, LENGTH + 1])
@pytest.mark.parametrize("name", ["trunk", "trunk_gradient"])
@needs_bfloat16_ops
def test_queries_start_within_the_row(name, start):
    refused(name, f"start is {start}, wanted is 0 to T = {LENGTH}", start=start)


@pytest.mark.parametrize("masked", [-1, TOKENS])
@pytest.mark.parametrize(
    "name", ["logits", *(pytest.param(n, marks=needs_bfloat16_ops) for n in ("logits_rounded", "head"))]
)
def test_the_masked_token_is_one_of_the_vocabulary(name, masked):
    refused(name, f"masked is {masked}, wanted is a token below", masked=masked)


@pytest.mark.parametrize("name", ["draw", pytest.param("head", marks=needs_bfloat16_ops)])
def test_temperatures_are_above_0(name):
    refused(name, "temperature is 0", temperature=0.0)


def test_of_no_tokens_none_is_drawn():
    refused("draw", "V = 0", logits=zeros(ROWS, 0))


@needs_bfloat16_ops
def test_what_was_not_kept_gives_no_gradient():
    made = OPS.tfppo_head(**{**head(), "keep": 0})
    refused("head_gradient", r"bases has shape \[0, 1\], wanted is \[N = 4, groups = 1\]", bases=made.bases)
    kept = OPS.tfppo_trunk(**{**trunk(), "keep": 0}).kept
    refused("trunk_gradient", r"kept of block 0 has shape \[0\], wanted is \[bytes = \d+\]", kept=kept)


@needs_bfloat16_ops
def test_a_step_takes_handles_of_float32_variables():
    variable, other = tf.Variable([1.0, 2.0]), tf.Variable([1, 2])
    numbers = dict(
        scales=[1.0], rates=[1.0], decays=[0.0], epsilon=1.0, gradients=[tf.ones([2])], share1=0.1, share2=0.1
    )
    handles = dict(momentums=[variable.handle], velocities=[variable.handle])
    for handle, message in (
        (other.handle, "int32.*wanted is one of float32"),
        (tf.stack([other.handle] * 2), "not the handle"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            OPS.tfppo_adam(**numbers, **handles, variables=[handle])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"epsilon has shape \[1\], wanted is \[\]"):
        OPS.tfppo_adam(**{**numbers, "epsilon": [1.0]}, **handles, variables=[variable.handle])
    np.testing.assert_array_equal(variable, [1.0, 2.0])


MEMORY = """
import resource, sys
sys.path.insert(0, {tests!r})
import tensorflow as tf
from native_support import OPS
wide = tf.zeros([1, 1 << 22])
draw = dict(logits=tf.zeros([1, 8]), uniforms=tf.zeros([1]), temperature=1.0)
OPS.tfppo_draw(**draw)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    OPS.tfppo_logits(hidden=wide, embedding=wide, masked=0, penalty=0.0)
except tf.errors.ResourceExhaustedError as error:
    print("refused:", error.message)
print("drawn:", len(OPS.tfppo_draw(**draw)))
"""


def test_where_memory_ends_an_operation_fails_and_the_next_one_runs():
    script = MEMORY.format(tests=str(Path(__file__).parents[2]))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "refused: " in done.stdout and "no memory to compute on" in done.stdout, done.stdout + done.stderr[-2000:]
    assert "drawn: 2" in done.stdout

"""Attention by blocks, and logits by chunks."""

from mutations.mutation import Mutation
from mutations.operators import drop_operand, replace

ATTENTION = "tests/ops/test_attention.py"
CHUNKS = "tests/ops/test_chunks.py"

MUTATIONS = [
    Mutation(
        "blocks_forget_what_came_before",
        "ops/attention.py",
        "_forward.step",
        [replace("shrink * context.read(i) + added", "context.read(i) + added")],
        ATTENTION,
    ),
    Mutation(
        "queries_placed_as_if_from_the_beginning",
        "ops/attention.py",
        "_Pairs.scores",
        [drop_operand("self._start")],
        ATTENTION,
    ),
    Mutation(
        "segments_see_each_other_across_blocks",
        "ops/attention.py",
        "_Pairs.scores",
        [drop_operand("same")],
        ATTENTION,
    ),
    Mutation(
        "gradient_of_blocks_without_the_mean",
        "ops/attention.py",
        "_backward.step",
        [replace("of_weights - products[i]", "of_weights")],
        ATTENTION,
    ),
    Mutation(
        "gradients_of_chunks_not_added_up",
        "ops/chunks.py",
        "by_chunks.computed.backward.step",
        [replace("of_matrix + tf.cast(of_part, tf.float32)", "tf.cast(of_part, tf.float32)")],
        CHUNKS,
    ),
    Mutation(
        "chunks_that_are_all_the_first",
        "ops/chunks.py",
        "_computed.step",
        [replace("part[i]", "part[0]")],
        CHUNKS,
    ),
]

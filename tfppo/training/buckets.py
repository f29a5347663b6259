"""Many tensors as a few vectors: a sum over replicas then is a few large messages instead of hundreds of small ones."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

# From some tens of megabytes on, a ring of GPUs or machines is bound by its bandwidth. More in one message would only
# take more memory: each bucket is a copy.
BUCKET_ELEMENTS = 2**24  # 64 MiB of float32


class Layout(NamedTuple):
    """Where tensors are in their buckets."""

    shapes: tuple[tuple[int, ...], ...]
    buckets: tuple[tuple[int, ...], ...]  # the numbers of the tensors in each


def layout_of(tensors: Sequence[tf.Tensor], limit: int = BUCKET_ELEMENTS) -> Layout:
    """Neighbours share a bucket until it would have more than `limit` elements; a larger tensor has one to itself.

    Raises: ValueError where a shape is not known.
    """
    shapes = tuple(tuple(tensor.shape.as_list()) for tensor in tensors)
    if any(size is None for shape in shapes for size in shape):
        raise ValueError(f"only tensors of known shapes have a place in a bucket, not {shapes}")
    buckets: list[list[int]] = []
    filled = 0
    for number, shape in enumerate(shapes):
        size = math.prod(shape)
        if not buckets or filled + size > limit:
            buckets.append([])
            filled = 0
        buckets[-1].append(number)
        filled += size
    return Layout(shapes, tuple(map(tuple, buckets)))


def flatten(tensors: Sequence[tf.Tensor], layout: Layout) -> list[tf.Tensor]:
    """The buckets of tensors, float32 vectors: numbers that float32 holds exactly come back exactly."""
    flat = [tf.reshape(tf.cast(tensor, tf.float32), [-1]) for tensor in tensors]
    return [_joined([flat[number] for number in bucket]) for bucket in layout.buckets]


def unflatten(buckets: Sequence[tf.Tensor], layout: Layout) -> list[tf.Tensor]:
    """The tensors that `flatten` made buckets of, float32."""
    found = []
    for vector, numbers in zip(buckets, layout.buckets, strict=True):
        shapes = [layout.shapes[number] for number in numbers]
        parts = tf.split(vector, [math.prod(shape) for shape in shapes])
        found += [tf.reshape(part, shape) for part, shape in zip(parts, shapes, strict=True)]
    return found


def sum_in_buckets(
    total: Callable[[list[tf.Tensor]], list[tf.Tensor]], tensors: Sequence[tf.Tensor], limit: int = BUCKET_ELEMENTS
) -> list[tf.Tensor]:
    """What `total` makes of tensors, element by element, told in buckets. Returns: float32 tensors of their shapes."""
    layout = layout_of(tensors, limit)
    return unflatten(total(flatten(tensors, layout)), layout)


def _joined(vectors):
    return vectors[0] if len(vectors) == 1 else tf.concat(vectors, axis=0)

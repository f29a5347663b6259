"""Summaries for TensorBoard, made of its own protocol buffers: no summary operation of TensorFlow runs.

TensorBoard's Time Series page sorts groups, the part of a tag before the slash, by name and opens with the first two
unfolded. What should be seen first therefore is in a group whose name comes first.
"""

import os
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.text import summary_v2 as text_summary
from tensorboard.util.tensor_util import make_tensor_proto

from tfppo.cluster import chief_writes
from tfppo.training.events import EventFile, event_files

LAYOUT_TAG = layout_metadata.CONFIG_SUMMARY_TAG
# {category: {chart: tags that are its lines}}
Layout = Mapping[str, Mapping[str, Sequence[str]]]


def table_values(tag: str, rows: Sequence[Sequence[object]]) -> list[summary_pb2.Summary.Value]:
    """A table, whose first row is its head, as a text summary; cells are shown as they are."""
    table = np.array([[_as_code(cell) for cell in row] for row in rows])
    return list(text_summary.text_pb(tag, table).value)


def picture_values(tag: str, path: str | os.PathLike, description: str = "") -> list[summary_pb2.Summary.Value]:
    """The PNG file of a path as an image summary."""
    data = Path(path).read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # of the header, which is the first part of a PNG
    tensor = make_tensor_proto([str(width).encode(), str(height).encode(), data], dtype=np.object_)
    metadata = image_metadata.create_summary_metadata(display_name=None, description=description)
    return [summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]


def layout_values(layout: Layout) -> list[summary_pb2.Summary.Value]:
    """Which tags share a chart on the page Custom Scalars, as the summary that this page reads."""
    categories = []
    for title, charts in layout.items():
        lines = {
            chart: layout_pb2.MultilineChartContent(tag=[f"^{tag}$" for tag in tags]) for chart, tags in charts.items()
        }
        charts_of_title = [layout_pb2.Chart(title=chart, multiline=content) for chart, content in lines.items()]
        categories.append(layout_pb2.Category(title=title, chart=charts_of_title))
    tensor = make_tensor_proto(layout_pb2.Layout(category=categories).SerializeToString(), dtype=np.object_)
    metadata = layout_metadata.create_summary_metadata()
    return [summary_pb2.Summary.Value(tag=LAYOUT_TAG, metadata=metadata, tensor=tensor)]


def make_event(
    step: int, values: Sequence[summary_pb2.Summary.Value], wall_time: float | None = None
) -> event_pb2.Event:
    """The event of a step; its time is now, where none is given."""
    wall_time = time.time() if wall_time is None else wall_time
    return event_pb2.Event(wall_time=wall_time, step=step, summary=summary_pb2.Summary(value=values))


@chief_writes
def replace_summaries(folder: str | os.PathLike, step: int, values: Sequence[summary_pb2.Summary.Value]) -> None:
    """Makes one event all that a folder of TensorBoard holds: what was written there before is gone afterwards."""
    old = event_files(Path(folder))
    writer = EventFile(Path(folder))
    writer.add(make_event(step, values))
    writer.close()
    for path in old:
        path.unlink()


def _as_code(text):
    # TensorBoard renders Markdown; as code, asterisks and tags in a sample are shown as they are.
    return "`" + str(text).replace("`", "'").replace("\n", " ") + "`"

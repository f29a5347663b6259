"""What TensorBoard itself makes of the event files: its plugins read them and answer."""

import json
import struct
import zlib

import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.image.images_plugin import ImagesPlugin
from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
from tensorboard.plugins.text.text_plugin import TextPlugin

from tfppo.ppo.dashboard import LAYOUT, OVERVIEW, OVERVIEW_OF_EVALUATION
from tfppo.training.metrics import TAGS, MetricsWriter
from tfppo.training.tensorboard import picture_values, replace_summaries, table_values

CONTEXT = context.RequestContext()


def plugins(folder):
    """The plugins of a TensorBoard that shows a folder."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    mapping = {}
    ours = base_plugin.TBContext(
        data_provider=MultiplexerDataProvider(multiplexer, str(folder)), plugin_name_to_instance=mapping
    )
    for plugin in (CustomScalarsPlugin, ImagesPlugin, ScalarsPlugin, TextPlugin):
        mapping[plugin.plugin_name] = plugin(ours)
    return mapping


def write_png(path, width, height):
    """A black picture, from its specification."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(b"\0" * (1 + width) * height))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))


def test_custom_scalars_has_the_layout_once_and_its_charts_have_lines(tmp_path):
    for steps, resume_step in (((1, 2), 0), ((3,), 2)):
        writer = MetricsWriter(tmp_path / "ppo", resume_step=resume_step, overview=OVERVIEW, layout=LAYOUT)
        for step in steps:
            writer.write(step, {"objective/score": step / 4, "objective/shaped_score": 9.0})
        writer.close()
    plugin = plugins(tmp_path)["custom_scalars"]
    layout = json.loads(plugin.layout_impl(CONTEXT, ""))
    assert [category["title"] for category in layout["category"]] == list(LAYOUT)
    charts = {
        chart["title"]: chart["multiline"]["tag"] for category in layout["category"] for chart in category["chart"]
    }
    assert (
        sum(len(category["chart"]) for category in layout["category"]) == len(charts) == sum(map(len, LAYOUT.values()))
    )
    tag, _ = charts["score, in training and on held-out prompts"]
    lines = plugin.scalars_impl(CONTEXT, "ppo", tag, "")
    assert lines["regex_valid"] and list(lines["tag_to_events"]) == ["objective/score"]  # and no shaped one
    assert [event[1:] for event in lines["tag_to_events"]["objective/score"]] == [(1, 0.25), (2, 0.5), (3, 0.75)]


@pytest.mark.parametrize("overview", [OVERVIEW, OVERVIEW_OF_EVALUATION])
def test_what_is_shown_first_is_written(overview):
    """Groups are sorted by name, and the first two are unfolded when TensorBoard opens."""
    groups = sorted({tag.partition("/")[0] for tag in [*TAGS, *overview]})
    assert groups[:2] == ["charts", "evaluation"]
    assert set(overview.values()) <= set(TAGS)
    assert set(OVERVIEW_OF_EVALUATION) <= set(OVERVIEW)  # both runs are lines of one chart
    assert {tag for charts in LAYOUT.values() for tags in charts.values() for tag in tags} <= set(TAGS)


def test_a_picture_and_tables_are_shown_and_replaced(tmp_path):
    for width in (3, 5):
        write_png(tmp_path / "picture.png", width, 2)
        table = [("", "before", "after"), ("reward", "0.1", f"0.{width}")]
        values = [
            *picture_values("charts/picture", tmp_path / "picture.png"),
            *table_values("evaluation/figures", table),
        ]
        replace_summaries(tmp_path / "runs" / "ppo", width, values)
    shown = plugins(tmp_path / "runs")
    images = shown["images"]
    (image,) = images._image_response_for_run(CONTEXT, "", "ppo", "charts/picture", 0)
    assert image["step"] == 5
    key = image["query"].partition("blob_key=")[2]
    assert images._get_generic_data_individual_image(CONTEXT, key) == (tmp_path / "picture.png").read_bytes()
    texts = shown["text"].text_impl(CONTEXT, "ppo", "evaluation/figures", "", enable_markdown=True)
    assert [text["step"] for text in texts] == [5] and "0.5" in texts[0]["text"] and "<table>" in texts[0]["text"]

"""The two records of a run agree, and a resumed run leaves no step twice."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.text.text_plugin import text_array_to_html

from tfppo.errors import UserError
from tfppo.training.metrics import TAGS, MetricsWriter, read_metrics


def read_events(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def curve(events, tag):
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]


def write_steps(folder, steps, offset=0.0, resume_step=0):
    writer = MetricsWriter(folder, resume_step=resume_step)
    for step in steps:
        scalars = {"objective/kl": step / 4 + offset, "policy/ratio": 1.0 + step / 1024}
        writer.write(step, scalars, {"rewards": np.array([step, step + 1.0])}, {"samples": [("a", f"row {step}")]})
    return writer


def test_jsonl_and_tensorboard_agree(tmp_path):
    write_steps(tmp_path / "ppo", range(1, 31)).close()
    rows = [json.loads(line) for line in (tmp_path / "ppo.jsonl").read_text().splitlines()]
    assert rows == [{"step": n, "objective/kl": n / 4, "policy/ratio": 1.0 + n / 1024} for n in range(1, 31)]
    assert read_metrics(tmp_path / "ppo.jsonl") == rows
    events = read_events(tmp_path / "ppo")
    for tag in ("objective/kl", "policy/ratio"):
        assert curve(events, tag) == [(row["step"], row[tag]) for row in rows]
        assert events.SummaryMetadata(tag).summary_description == TAGS[tag]
    assert [event.step for event in events.Tensors("rewards")] == list(range(1, 31))
    histogram = tf.make_ndarray(events.Tensors("rewards")[4].tensor_proto)  # rows of left edge, right edge, count
    assert histogram[0, 0] == 5.0 and histogram[-1, 1] == 6.0 and histogram[:, 2].sum() == 2.0


def test_resume_drops_what_was_written_past_the_step(tmp_path):
    write_steps(tmp_path / "ppo", range(1, 31)).close()
    write_steps(tmp_path / "ppo", range(21, 36), offset=100.0, resume_step=20).close()
    expected = [(n, n / 4) for n in range(1, 21)] + [(n, n / 4 + 100.0) for n in range(21, 36)]
    assert [(row["step"], row["objective/kl"]) for row in read_metrics(tmp_path / "ppo.jsonl")] == expected
    events = read_events(tmp_path / "ppo")
    assert curve(events, "objective/kl") == expected
    for tag in ("rewards", "samples"):
        assert [event.step for event in events.Tensors(tag)] == list(range(1, 36))


def test_resume_after_the_events_were_cut_off(tmp_path):
    write_steps(tmp_path / "ppo", range(1, 6)).close()
    (path,) = (tmp_path / "ppo").iterdir()
    path.write_bytes(path.read_bytes()[:-7])  # in the record of step 5
    write_steps(tmp_path / "ppo", [5], offset=100.0, resume_step=4).close()
    assert curve(read_events(tmp_path / "ppo"), "objective/kl") == [(n, n / 4) for n in range(1, 5)] + [(5, 101.25)]


def test_resume_from_nothing_starts_anew(tmp_path):
    write_steps(tmp_path / "ppo", range(1, 4)).close()
    write_steps(tmp_path / "ppo", range(1, 2), offset=9.0).close()
    assert [row["objective/kl"] for row in read_metrics(tmp_path / "ppo.jsonl")] == [9.25]
    assert curve(read_events(tmp_path / "ppo"), "objective/kl") == [(1, 9.25)]


def test_flush_brings_both_records_to_disk(tmp_path):
    writer = write_steps(tmp_path / "ppo", range(1, 4))
    writer.flush()
    assert len(read_metrics(tmp_path / "ppo.jsonl")) == 3
    assert len(curve(read_events(tmp_path / "ppo"), "objective/kl")) == 3
    writer.close()


def test_texts_are_shown_as_they_are(tmp_path):
    writer = MetricsWriter(tmp_path / "ppo")
    hostile = "<script>alert(1)</script> **bold** [link](http://x) | `code`\n# title"
    writer.write(1, {"objective/kl": 0.0}, texts={"samples": [("prompt", "response"), (hostile, "ünï ✓")]})
    writer.close()
    table = tf.make_ndarray(read_events(tmp_path / "ppo").Tensors("samples")[0].tensor_proto)
    assert table.shape == (2, 2)
    html = text_array_to_html(table, True)
    for tag in ("script", "strong", "a", "h1"):
        assert not re.search(rf"<{tag}\b", html), html
    assert "alert(1)" in html and "**bold**" in html and "[link](http://x)" in html and "ünï ✓" in html


def test_a_tag_without_an_explanation_is_refused(tmp_path):
    writer = MetricsWriter(tmp_path / "ppo")
    with pytest.raises(KeyError, match="objective/klx"):
        writer.write(1, {"objective/klx": 0.0})
    writer.close()
    assert read_metrics(tmp_path / "ppo.jsonl") == []


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, cut):
    path = tmp_path / "ppo.jsonl"
    write_steps(tmp_path / "ppo", range(1, 4)).close()
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    write_steps(tmp_path / "ppo", [3, 4], resume_step=2).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_numbers_survive_exactly(tmp_path):
    writer = MetricsWriter(tmp_path / "ppo")
    values = [np.float32(0.1), 1 / 3, 1e-300, math.inf, tf.constant(0.7)]
    for step, value in enumerate(values, start=1):
        writer.write(step, {"objective/kl": value})
    writer.close()
    MetricsWriter(tmp_path / "ppo", resume_step=len(values)).close()  # reads and writes the record once more
    read = [row["objective/kl"] for row in read_metrics(tmp_path / "ppo.jsonl")]
    assert read == [0.10000000149011612, 0.3333333333333333, 1e-300, math.inf, 0.699999988079071]


def test_no_file_means_no_rows(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []
    assert not Path(tmp_path / "none.jsonl").exists()


def test_the_overview_repeats_scalars_for_tensorboard_alone(tmp_path):
    writer = MetricsWriter(tmp_path / "ppo", overview={"charts/kl": "objective/kl", "charts/score": "objective/score"})
    for step in (1, 2):
        writer.write(step, {"objective/kl": step / 4})
    writer.close()
    events = read_events(tmp_path / "ppo")
    assert curve(events, "charts/kl") == curve(events, "objective/kl") == [(1, 0.25), (2, 0.5)]
    assert "charts/score" not in events.Tags()["tensors"]  # nothing to repeat
    assert events.SummaryMetadata("charts/kl").summary_description.startswith("objective/kl: KL of policy")
    assert read_metrics(tmp_path / "ppo.jsonl") == [{"step": 1, "objective/kl": 0.25}, {"step": 2, "objective/kl": 0.5}]


def test_a_step_that_was_written_in_two_events_keeps_both(tmp_path):
    writer = MetricsWriter(tmp_path / "ppo")
    writer.write(1, {"objective/kl": 1.0})
    writer.write(1, {"policy/ratio": 2.0})
    writer.close()
    MetricsWriter(tmp_path / "ppo", resume_step=1).close()
    events = read_events(tmp_path / "ppo")
    assert curve(events, "objective/kl") == [(1, 1.0)] and curve(events, "policy/ratio") == [(1, 2.0)]


DAMAGED_LINES = [b"", b"{", b"null", b"7", b'{"step": "x"}', b"\xff\x00\xfe", b'{"objective/kl": 1.0}']


@pytest.mark.parametrize("damage", DAMAGED_LINES, ids=repr)
def test_a_damaged_line_in_the_middle_costs_that_line_alone(tmp_path, warnings, damage):
    path = tmp_path / "ppo.jsonl"
    write_steps(tmp_path / "ppo", range(1, 6)).close()
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], damage, *lines[3:]]) + b"\n")
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 4, 5]
    write_steps(tmp_path / "ppo", [6], resume_step=5).close()
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 4, 5, 6]
    assert warnings == [
        f"{path} lacks 1 of the 5 steps done, the first is step 3 (damaged lines: 3); the run goes on, its record "
        "has a gap"
    ]
    assert [step for step, _ in curve(read_events(tmp_path / "ppo"), "objective/kl")] == [1, 2, 3, 4, 5, 6]


def test_a_record_that_is_gone_is_said(tmp_path, warnings):
    MetricsWriter(tmp_path / "ppo", resume_step=40).close()
    (line,) = warnings
    assert "lacks 40 of the 40 steps done, the first is step 1;" in line


def test_what_a_damaged_event_file_lost_comes_from_the_record(tmp_path, warnings):
    write_steps(tmp_path / "ppo", range(1, 31)).close()
    (path,) = (tmp_path / "ppo").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    MetricsWriter(tmp_path / "ppo", resume_step=30).close()
    assert curve(read_events(tmp_path / "ppo"), "objective/kl") == [(n, n / 4) for n in range(1, 31)]
    assert warnings == []


def test_a_name_with_a_dot_keeps_it(tmp_path):
    assert MetricsWriter(tmp_path / "ppo.2").path == tmp_path / "ppo.2.jsonl"


def test_a_full_disk_is_one_line(tmp_path):
    """/dev/full is a file of a disk without space."""
    writer = write_steps(tmp_path / "ppo", range(1, 4))
    writer.flush()
    with Path("/dev/full").open("a") as writer._file:
        writer.write(4, {"objective/kl": 0.0})
        with pytest.raises(UserError) as error:
            writer.flush()
        writer.close()  # does not hide it
    assert str(error.value) == (
        f"the log '{tmp_path / 'ppo.jsonl'}' cannot be written: No space left on device; free some space on that disk; "
        "the last checkpoint is intact, and the same command goes on from it"
    )
    assert [row["step"] for row in read_metrics(tmp_path / "ppo.jsonl")] == [1, 2, 3]

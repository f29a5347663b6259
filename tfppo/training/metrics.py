"""The metrics of a run: a JSONL file, which is the authoritative record, and the same for TensorBoard.

`TAGS` explains every scalar once.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from absl import logging
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.histogram import summary_v2 as histogram_summary
from tensorboard.plugins.scalar import summary_v2 as scalar_summary

from tfppo.cluster import this_cluster
from tfppo.files import told, write_text
from tfppo.training.events import EventFile, event_files, read_events
from tfppo.training.tensorboard import LAYOUT_TAG, Layout, layout_values, make_event, table_values

_SECONDS_UNSEEN = 10.0  # how long a row may wait until TensorBoard can see it

TAGS = {
    "objective/kl": "KL of policy to reference, nats a response: mean over the batch of the summed log-ratio",
    "objective/kl_coef": "weight of the KL penalty in the reward",
    "objective/entropy": "minus the log-probability of a response, in nats: mean over the batch",
    "objective/score": "weighted sum of the reward functions, mean over the batch, before any shaping",
    "objective/shaped_score": "the same after shaping: normalised, scaled, clipped, penalised",
    "objective/rlhf_reward": "shaped score minus the KL penalty, mean over the batch: what PPO maximises",
    "objective/largest_advantage": "largest |advantage| before whitening, over the rollout",
    "evaluation/prompts": "number of held-out prompts that the figures of the evaluation are means over",
    "evaluation/score": "weighted sum of the reward functions on held-out prompts, mean, before any shaping",
    "evaluation/kl": "KL of policy to reference on held-out prompts, nats a response: the mean summed log-ratio",
    "evaluation/rlhf_reward": "evaluation/score minus evaluation/kl times ppo.kl_coef and ppo.kl_loss_coef",
    "evaluation/length": "mean number of tokens in a response to a held-out prompt, the stop token included",
    "evaluation/stopped": "share of responses to held-out prompts that ended with the stop token",
    "objective/groups_without_spread": "rloo, grpo: share of prompts to which all responses have the same shaped score",
    "loss/policy": "clipped surrogate loss, mean over tokens",
    "loss/value": "clipped squared error of the critic, halved, mean over tokens",
    "loss/total": "policy loss plus value_coef times value loss",
    "policy/approx_kl": "half the mean squared log-ratio of the new policy to the one that sampled",
    "policy/clip_fraction": "share of tokens whose gradient the clip has cut off",
    "policy/entropy": "entropy of the next-token distribution, nats a token",
    "policy/ratio": "mean probability ratio of the new policy to the one that sampled",
    "policy/first_ratio_error": "largest |ratio - 1| on the first minibatch, where it must be 0 up to rounding",
    "policy/gradient_norm": "norm of the gradient before clipping",
    "policy/steps_taken": "share of optimizer steps taken; the others had no finite gradient, or target_kl ended them",
    "policy/learning_rate": "learning rate of this update",
    "policy/epochs": "epochs over the rollout; fewer than ppo_epochs where target_kl ended them",
    "value/clip_fraction": "share of tokens whose value loss is the clipped one",
    "value/explained_variance": "1 - mean squared error of the values / variance of the returns, over the rollout",
    "value/mean": "mean value while sampling",
    "response/length": "mean number of tokens in a response, the stop token included",
    "response/stopped": "share of responses that ended with the stop token",
    "time/rollout": "seconds to sample, score and look the reference up",
    "time/update": "seconds of the update",
    "time/evaluation": "seconds of the evaluation",
    "time/reward": "seconds that the reward functions took; meanwhile the reference is looked up",
    "time/reward_share": "these seconds over the seconds of the iteration",
    "time/tokens_per_second": "PPO: response tokens over the seconds of the iteration; otherwise tokens a second",
    "memory/device_peak_gb": "most GB in use on a GPU in this iteration or step; of several GPUs, on the fullest",
    "reward_model/loss": "training loss: -log of the softmax share of the chosen response, mean over comparisons",
    "reward_model/accuracy": "share of the batch's comparisons in which the chosen response scores highest",
    "reward_model/learning_rate": "learning rate",
    "reward_model/gradient_norm": "norm of the gradient before clipping",
    "reward_model/held_out_loss": "held-out loss",
    "reward_model/held_out_accuracy": "share of held-out comparisons in which the chosen response scores highest",
    "lm/loss": "training loss, nats a token",
    "lm/learning_rate": "learning rate",
    "lm/gradient_norm": "norm of the gradient before clipping",
    "lm/held_out_loss": "loss on held-out texts, nats a token",
    "lm/held_out_perplexity": "perplexity of held-out texts, a token: exp(held-out loss)",
    "lm/held_out_word_perplexity": "perplexity of held-out texts, a word: exp(total loss / number of words)",
}


def explain(tag: str) -> str:
    """What a scalar means. Raises: KeyError for one that TAGS does not explain."""
    return "mean score of this reward function, unweighted" if tag.startswith("reward/") else TAGS[tag]


def shown_perplexity(value: float) -> str:
    """A perplexity in a line: with a decimal below 100, where it tells something."""
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


class MetricsWriter:
    """Writes the scalars, histograms and texts of each step.

    Args:
        folder: where the event files are; the JSONL file is beside it, as FOLDER.jsonl.
        resume_step: number of steps done; later steps of an earlier run are removed from both records.
        overview: {tag: scalar that TensorBoard also gets under this tag}; the JSONL file has each scalar once.
        layout: the charts of TensorBoard's page Custom Scalars.
        sparse: whether some steps alone have a row, so that a gap means nothing.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        resume_step: int = 0,
        *,
        overview: Mapping[str, str] | None = None,
        layout: Layout | None = None,
        sparse: bool = False,
    ):
        folder = Path(folder)
        self._overview = overview or {}
        self.path = folder.with_name(folder.name + ".jsonl")
        self._flush_at = 0.0
        rows, damaged = _read_rows(self.path)
        rows = [row for row in rows if row["step"] <= resume_step]
        if not sparse:
            self._report_gaps({row["step"] for row in rows}, damaged, resume_step)
        with self._told():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
            self._file = self.path.open("a")
            # TensorBoard would show a step twice that is in two files: events that stay are copied into one new file.
            old = event_files(folder)
            kept = _events_by_step(old, resume_step)
            for row in rows:  # of what a damaged file has lost
                known = {tag: value for tag, value in row.items() if tag in TAGS or tag.startswith("reward/")}
                kept.setdefault(row["step"], make_event(row["step"], self._scalar_values(known)))
            self._events = EventFile(folder)
            if layout:
                self._events.add(make_event(0, layout_values(layout)))
            for _, event in sorted(kept.items()):
                self._events.add(event)
            self._events.flush()
            for path in old:
                path.unlink()

    def _told(self):
        return told(
            f"the log {str(self.path)!r}", "the last checkpoint is intact, and the same command goes on from it"
        )

    def _report_gaps(self, steps, damaged, resume_step):
        """A line where the record of a run that goes on is not whole."""
        missing = sorted(set(range(1, resume_step + 1)) - steps)
        if missing:
            lines = f" (damaged lines: {', '.join(map(str, damaged))})" if damaged else ""
            logging.warning(
                "%s lacks %d of the %d steps done, the first is step %d%s; the run goes on, its record has a gap",
                self.path,
                len(missing),
                resume_step,
                missing[0],
                lines,
            )

    def _scalar_values(self, scalars):
        """Scalars as TensorBoard's values. Raises: KeyError for one that TAGS does not explain."""
        values = []
        for tag, value in scalars.items():
            values += scalar_summary.scalar_pb(tag, float(value), explain(tag)).value
        for shown, tag in self._overview.items():
            if tag in scalars:
                values += scalar_summary.scalar_pb(shown, float(scalars[tag]), f"{tag}: {explain(tag)}").value
        return values

    def write(
        self,
        step: int,
        scalars: dict,
        histograms: Mapping[str, np.ndarray] | None = None,
        texts: Mapping[str, Sequence[Sequence[object]]] | None = None,
    ) -> None:
        """Writes the scalars {tag: number}, histograms {tag: array} and texts {tag: rows of cells} of one step.

        Raises: KeyError for a scalar that TAGS does not explain.
        """
        values = self._scalar_values(scalars)
        for tag, data in (histograms or {}).items():
            values += histogram_summary.histogram_pb(tag, np.asarray(data, np.float64)).value
        for tag, rows in (texts or {}).items():
            values += table_values(tag, rows)
        row = {"step": step, **{tag: float(value) for tag, value in scalars.items()}}
        with self._told():
            self._events.add(make_event(step, values))
            self._file.write(json.dumps(row) + "\n")
            if time.monotonic() > self._flush_at:
                self._file.flush()
                self._events.flush()
                self._flush_at = time.monotonic() + _SECONDS_UNSEEN

    def flush(self) -> None:
        """Writes buffered records to the files, and waits until the authoritative one is on the disk.

        Raises: UserError where that fails.
        """
        with self._told():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._events.flush()

    def close(self) -> None:
        """Closes both records. What cannot be written then came after the last `flush`, and is run again."""
        for record in (self._file, self._events):
            with suppress(OSError):
                record.close()


class NoMetrics(MetricsWriter):
    """What a worker has that is not the chief: it writes nothing."""

    def __init__(self, *arguments: object, **named: object):
        pass

    def write(self, *arguments: object, **named: object) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def open_metrics(
    folder: str | os.PathLike,
    resume_step: int = 0,
    *,
    overview: Mapping[str, str] | None = None,
    layout: Layout | None = None,
    sparse: bool = False,
) -> MetricsWriter:
    """The writer of this worker: that of the chief writes. The arguments are those of MetricsWriter."""
    kind = MetricsWriter if this_cluster().is_chief else NoMetrics
    return kind(folder, resume_step, overview=overview, layout=layout, sparse=sparse)


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The rows of a JSONL file that can be read, without a truncated last line; no rows where there is no file."""
    return _read_rows(Path(path))[0]


def _read_rows(path):
    """Rows, and the numbers of the lines that hold none."""
    rows, damaged = [], []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        elif number < len(lines):  # the last one was being written
            damaged.append(number)
    return rows, damaged


def _events_by_step(paths: Sequence[Path], resume_step: int) -> dict[int, event_pb2.Event]:
    """One event a step, up to a step, with the newest value of each tag; without layouts, which are written anew."""
    found: dict[int, dict[str, event_pb2.Event]] = {}
    for event in (event for path in paths for event in read_events(path) if event.step <= resume_step):
        for value in event.summary.value:
            if value.tag != LAYOUT_TAG:
                found.setdefault(event.step, {})[value.tag] = make_event(event.step, [value], event.wall_time)
    kept = {}
    for step, events in found.items():
        values = [event.summary.value[0] for event in events.values()]
        kept[step] = make_event(step, values, max(event.wall_time for event in events.values()))
    return kept

"""The metrics of a run: a JSONL file, which is the authoritative record, and the same for TensorBoard.

`TAGS` explains every scalar once.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.histogram import summary_v2 as histogram_summary
from tensorboard.plugins.scalar import summary_v2 as scalar_summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tfppo.training.tensorboard import LAYOUT_TAG, Layout, event_files, layout_values, make_event, table_values

TAGS = {
    "objective/kl": "KL of policy to reference, nats a response: mean over the batch of the summed log-ratio",
    "objective/kl_coef": "weight of the KL penalty in the reward",
    "objective/entropy": "minus the log-probability of a response, in nats: mean over the batch",
    "objective/score": "weighted sum of the reward functions, mean over the batch, before any shaping",
    "objective/shaped_score": "the same after shaping: normalised, scaled, clipped, penalised",
    "objective/rlhf_reward": "shaped score minus the KL penalty, mean over the batch: what PPO maximises",
    "objective/largest_advantage": "largest |advantage| before whitening, over the rollout",
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


class MetricsWriter:
    """Writes the scalars, histograms and texts of each step.

    Args:
        folder: where the event files are; the JSONL file is beside it, as FOLDER.jsonl.
        resume_step: number of steps done; later steps of an earlier run are removed from both records.
        overview: {tag: scalar that TensorBoard also gets under this tag}; the JSONL file has each scalar once.
        layout: the charts of TensorBoard's page Custom Scalars.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        resume_step: int = 0,
        *,
        overview: Mapping[str, str] | None = None,
        layout: Layout | None = None,
    ):
        folder = Path(folder)
        self._overview = overview or {}
        self.path = folder.with_suffix(".jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fresh.replace(self.path)
        self._file = self.path.open("a")
        # TensorBoard would show a step twice that is in two files: events that stay are copied into one new file.
        old = event_files(folder)
        kept = _events_by_step(old, resume_step)
        self._events = EventFileWriter(str(folder))
        if layout:
            self._events.add_event(make_event(0, layout_values(layout)))
        for event in kept:
            self._events.add_event(event)
        self._events.flush()
        for path in old:
            path.unlink()

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
        values = []
        for tag, value in scalars.items():
            values += scalar_summary.scalar_pb(tag, float(value), explain(tag)).value
        for shown, tag in self._overview.items():
            if tag in scalars:
                values += scalar_summary.scalar_pb(shown, float(scalars[tag]), f"{tag}: {explain(tag)}").value
        for tag, data in (histograms or {}).items():
            values += histogram_summary.histogram_pb(tag, np.asarray(data, np.float64)).value
        for tag, rows in (texts or {}).items():
            values += table_values(tag, rows)
        self._events.add_event(make_event(step, values))
        row = {"step": step, **{tag: float(value) for tag, value in scalars.items()}}
        self._file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Writes buffered records to the files."""
        self._file.flush()
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes both records."""
        self._file.close()
        self._events.close()


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """The rows of a JSONL file without a truncated last line; no rows where there is no file."""
    path = Path(path)
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _events_by_step(paths: Sequence[Path], resume_step: int) -> Iterator[event_pb2.Event]:
    """One event a step, up to a step, with the newest value of each tag; without layouts, which are written anew."""
    kept: dict[int, dict[str, event_pb2.Event]] = {}
    for event in (event for path in paths for event in _read_events(path) if event.step <= resume_step):
        for value in event.summary.value:
            if value.tag != LAYOUT_TAG:
                kept.setdefault(event.step, {})[value.tag] = make_event(event.step, [value], event.wall_time)
    for step, events in sorted(kept.items()):
        values = [event.summary.value[0] for event in events.values()]
        yield make_event(step, values, max(event.wall_time for event in events.values()))


def _read_events(path):
    """The summary events of a file, up to a truncated record."""
    for record in RawEventFileLoader(str(path)).Load():
        event = event_pb2.Event.FromString(record)
        if event.HasField("summary"):
            yield event

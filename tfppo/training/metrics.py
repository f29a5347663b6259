"""The metrics of a run: a JSONL file, which is the authoritative record, and the same for TensorBoard.

`TAGS` explains every scalar once.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import summary_v2 as histogram_summary
from tensorboard.plugins.scalar import summary_v2 as scalar_summary
from tensorboard.plugins.text import summary_v2 as text_summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

TAGS = {
    "objective/kl": "KL of policy to reference, nats a response: mean over the batch of the summed log-ratio",
    "objective/kl_coef": "weight of the KL penalty in the reward",
    "objective/entropy": "minus the log-probability of a response, in nats: mean over the batch",
    "objective/score": "weighted sum of the reward functions, mean over the batch, before any shaping",
    "objective/shaped_score": "the same after shaping: normalised, scaled, clipped, penalised",
    "objective/rlhf_reward": "shaped score minus the KL penalty, mean over the batch: what PPO maximises",
    "objective/largest_advantage": "largest |advantage| before whitening, over the rollout",
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
    "time/tokens_per_second": "PPO: response tokens over the seconds of the iteration; otherwise tokens a second",
    "reward_model/loss": "training loss: -log of the softmax share of the chosen response, mean over comparisons",
    "reward_model/accuracy": "share of the batch's comparisons in which the chosen response scores highest",
    "reward_model/learning_rate": "learning rate",
    "reward_model/gradient_norm": "norm of the gradient before clipping",
    "reward_model/validation_loss": "held-out loss",
    "reward_model/validation_accuracy": "share of held-out comparisons in which the chosen response scores highest",
    "lm/loss": "training loss, nats a token",
    "lm/learning_rate": "learning rate",
    "lm/gradient_norm": "norm of the gradient before clipping",
    "lm/validation_loss": "held-out loss, nats a token",
    "lm/validation_perplexity": "held-out perplexity a token",
    "lm/validation_word_perplexity": "held-out perplexity a word: exp(total loss / number of words)",
}


def explain(tag: str) -> str:
    """What a scalar means. Raises: KeyError for one that TAGS does not explain."""
    return "mean score of this reward function, unweighted" if tag.startswith("reward/") else TAGS[tag]


class MetricsWriter:
    """Writes the scalars, histograms and texts of each step.

    Args:
        folder: where the event files are; the JSONL file is beside it, as FOLDER.jsonl.
        resume_step: number of steps done; later steps of an earlier run are removed from both records.
    """

    def __init__(self, folder: str | os.PathLike, resume_step: int = 0):
        folder = Path(folder)
        self.path = folder.with_suffix(".jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_metrics(self.path) if row["step"] <= resume_step]
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fresh.replace(self.path)
        self._file = self.path.open("a")
        # TensorBoard would show a step twice that is in two files: events that stay are copied into one new file.
        old = sorted(folder.glob("events.out.tfevents.*"))
        kept = {event.step: event for path in old for event in _read_events(path) if event.step <= resume_step}
        self._events = EventFileWriter(str(folder))
        for _, event in sorted(kept.items()):
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
        for tag, data in (histograms or {}).items():
            values += histogram_summary.histogram_pb(tag, np.asarray(data, np.float64)).value
        for tag, rows in (texts or {}).items():
            table = np.array([[_as_code(cell) for cell in row] for row in rows])
            values += text_summary.text_pb(tag, table).value
        self._events.add_event(
            event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=values))
        )
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


def _read_events(path):
    """The summary events of a file, up to a truncated record."""
    for record in RawEventFileLoader(str(path)).Load():
        event = event_pb2.Event.FromString(record)
        if event.HasField("summary"):
            yield event


def _as_code(text):
    # TensorBoard renders Markdown; as code, asterisks and tags in a sample are shown as they are.
    return "`" + str(text).replace("`", "'").replace("\n", " ") + "`"

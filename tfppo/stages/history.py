"""With which settings a run was trained: what a resumed run is compared with.

WORKDIR/config_history.jsonl has a line for the start of each training stage and for each change since:

    {"stage": "PPO", "from": 29, "settings": {"ppo.learning_rate": 0.002}, "contents": {}}

`from` is the first step or iteration that was trained so. WORKDIR/config.json has the newest value of each setting.
Both are written with the first checkpoint that was trained so: they never claim what was not trained.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tfppo.config import Config
from tfppo.config.resuming import Change, Kind, Stage, changes, flat, marks, refuse_fixed, shown
from tfppo.files import told, user_path, write_text
from tfppo.training.checkpoint import CheckpointKeeper, saved_steps


def _say(line):
    print(line, flush=True)


class SettingsHistory:
    """The settings of one training stage of a run, as they were and as they are now.

    Raises: UserError where a setting has changed that is fixed by the run. No model is loaded for that.
    """

    def __init__(self, config: Config, folder: Path, stage: Stage):
        self._folder, self._stage = folder, stage
        self._path = folder / "config_history.jsonl"
        self._now = stage.settings(config)
        self._done = max(saved_steps(folder / stage.checkpoints), default=0)
        refuse_fixed(self.changes(), f"{stage.name} training in {str(folder)!r}")

    def changes(self) -> list[Change]:
        """What differs from the settings that the newest checkpoint was trained with; nothing where there is none."""
        before, contents = self._before()
        if not self._done:
            return []
        if not before:  # of a version without a history: what it was started with is not known for sure
            known = trained_settings(self._folder)
            return [change for change in changes(Config, known, self._now) if change.kind is not Kind.FIXED]

        def same_content(name):
            return contents.get(name) == content_of(self._now[name])

        return changes(Config, before, self._now, same_content)

    def resume(self, keeper: CheckpointKeeper, done: int, *, left: bool, say: Callable[[str], None] = _say) -> None:
        """Says what has changed, lets changed settings replace the saved state, and keeps the settings from now on.

        Args:
            keeper: has restored the checkpoint of the stage; it tells when the next one is saved.
            done: the steps that are done.
            left: whether there is anything left to train.
        """
        self._done = done  # a damaged checkpoint was left out, where this is not the newest one
        if done and (damage := self._damage()):
            say(damage)
        found = self.changes()
        unit = f"{self._stage.unit} {done + 1}"
        for change in found:
            note = ""
            if change.kind is Kind.STATE and left:
                name = change.name.rpartition(".")[2]
                adapted = keeper.scalars[name]
                note = "" if adapted == change.before else f" (it had come to {shown(adapted)})"
                keeper.override(name, change.now)
            say(f"{change} from {unit}{note}" if left else f"{change} has no effect on the training, which is over")
        keeper.on_save = self._keep

    def _before(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The settings that the first `done` steps ended with, and the contents of what they name."""
        settings: dict[str, Any] = {}
        contents: dict[str, str] = {}
        for line in self._lines():
            if line["stage"] == self._stage.name and line["from"] <= self._done:
                settings.update(line["settings"])
                contents.update(line.get("contents", {}))
        return settings, contents

    def _lines(self) -> list[dict[str, Any]]:
        return [line for line in map(_parse, _text(self._path).splitlines()) if _is_whole(line)]

    def _damage(self) -> str:
        """What is wrong with the file, as what it lacks is not refused; empty where there is none, or it is whole."""
        lines = _text(self._path).splitlines()
        if not lines:
            return f"{self._path} is empty: settings that it held are not compared" if self._path.exists() else ""
        damaged = [str(number) for number, line in enumerate(lines, start=1) if not _is_whole(_parse(line))]
        shown = ", ".join(damaged)
        return f"{self._path} has damaged lines ({shown}): settings that they held are not compared" if damaged else ""

    def _keep(self, step: int) -> None:
        """Writes down that training up to `step` was done with the settings of now, if that is not known already."""
        if step <= self._done:
            return
        before, _ = self._before()
        new = {name: value for name, value in self._now.items() if name not in before or before[name] != value}
        if new:
            # What came later was lost with the checkpoints that had it.
            name, done = self._stage.name, self._done
            lines = [line for line in self._lines() if line["stage"] != name or line["from"] <= done]
            named = [name for name, mark in marks(Config).items() if mark.by_content and name in new]
            contents = {name: content_of(new[name]) for name in named}
            lines.append({"stage": name, "from": done + 1, "settings": new, "contents": contents})
            text = "".join(json.dumps(line) + "\n" for line in lines)
            _write(self._path, text)
        write_settings(self._folder, self._now)
        self._done = step


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Writes settings {section.field: value} into WORKDIR/config.json, beside those that it has."""
    path = folder / "config.json"
    values = {**trained_settings(folder), **settings}
    order = {name: place for place, name in enumerate(marks(Config))}
    config: dict[str, Any] = {}
    for name in sorted(values, key=lambda name: order.get(name, len(order))):
        *section, field = name.split(".")
        holder = config.setdefault(section[0], {}) if section else config
        holder[field] = values[name]
    _write(path, json.dumps(config, indent=2) + "\n")


def trained_settings(folder: Path) -> dict[str, Any]:
    """The settings {section.field: value} of WORKDIR/config.json; none where no stage has trained there."""
    return flat(_read_json(folder / "config.json"))


def content_of(name: str) -> str:
    """What tells the content of a file, of a folder or of something else with a name.

    A folder counts as the same wherever it is: it holds a model or many files, whose checkpoint knows them by digest.
    """
    path = user_path(name)
    if name and path.is_dir():
        return "a folder"
    if not path.is_file():
        return name
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(line):
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is none that can be read."""
    return _parse(_text(path))


def _text(path):
    """What a file holds, also where it is damaged; nothing where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _is_whole(line):
    """Whether a line of the history is of the form that is written."""
    forms = {"stage": str, "from": int, "settings": dict}
    return all(isinstance(line.get(name), form) for name, form in forms.items())


def _write(path: Path, text: str) -> None:
    with told(repr(str(path)), "the one before is intact"):
        write_text(path, text)

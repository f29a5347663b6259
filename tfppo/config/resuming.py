"""What may change between the commands of one run: every setting is free, fixed, or part of the saved state.

`settings.py` marks what is `fixed` and what is `state`; a setting without a mark is free. docs/runs.md says what a user
sees of it.
"""

import dataclasses
import enum
import json
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tfppo.config.choices import settings_to_let_go
from tfppo.errors import UserError

if TYPE_CHECKING:  # settings.py imports this module
    from tfppo.config.settings import Config

_MARK = "resuming"


class Kind(enum.Enum):
    """What happens to another value when a run is resumed."""

    FREE = "taken, and said"
    FIXED = "refused"
    STATE = "taken instead of the value in the checkpoint, and said"


class _Mark(NamedTuple):
    kind: Kind
    of: Callable[[Any], object] = lambda value: value  # what is compared
    by_content: bool = False


def fixed(default: Any, *, of: Callable[[Any], object] = lambda value: value, by_content: bool = False) -> Any:
    """A setting that a run keeps from its first step to its last.

    Args:
        of: what of the value is fixed; values that agree in it are free.
        by_content: the setting names a file or a folder, which may move: what is in it is fixed, not its name.
    """
    return field(default=default, metadata={_MARK: _Mark(Kind.FIXED, of, by_content)})


def state(default: Any) -> Any:
    """A setting that a run starts from and then keeps in its checkpoints, as a number of the same name."""
    return field(default=default, metadata={_MARK: _Mark(Kind.STATE)})


def marks(config: type) -> dict[str, _Mark]:
    """The mark of every setting of a configuration, named section.field."""
    found = {}
    for setting in dataclasses.fields(config):
        if dataclasses.is_dataclass(setting.type):
            assert isinstance(setting.type, type)
            found.update({f"{setting.name}.{name}": mark for name, mark in marks(setting.type).items()})
        else:
            found[setting.name] = setting.metadata.get(_MARK, _Mark(Kind.FREE))
    return found


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run.

    Args:
        uses: the settings and sections that it depends on.
        without: those among them that it does not depend on.
    """

    uses: Collection[str]
    without: Collection[str] = ()

    def settings(self, config: "Config") -> dict[str, Any]:
        """The settings {section.field: value} that it depends on, as JSON holds them."""
        values = flat(json.loads(config.to_json()))
        without = {*self.without, *(("model",) if config.language_model else ())}  # whose sizes it takes then
        return {
            name: value for name, value in values.items() if _is_among(name, self.uses) and not _is_among(name, without)
        }


@dataclass(frozen=True, kw_only=True)
class Stage(Part):
    """A training stage of a run.

    Args:
        name: as messages say it.
        checkpoints: their folder in WORKDIR.
        unit: what it counts.
    """

    name: str
    checkpoints: str
    unit: str


_RUN = ("seed", "language_model", "num_replicas")
LANGUAGE_MODEL = Stage(
    name="language model",
    checkpoints="lm_checkpoints",
    unit="step",
    uses=(*_RUN, "data", "model", "lm"),
    without=(  # what becomes of prompts in PPO
        "data.min_prompt_tokens",
        "data.max_prompt_tokens",
        "data.max_given_prompt_tokens",
        "data.long_prompts",
    ),
)
REWARD_MODEL = Stage(
    name="reward model",
    checkpoints="reward_checkpoints",
    unit="step",
    uses=(*_RUN, "reward_model"),
    without=("reward_model.normalize", "reward_model.normalize_samples"),
)
_NORMALIZE = "reward_model.normalize"
# Of the reward model, which comes after its training: by the way that it is done.
NORMALIZATIONS = {
    "none": Part(uses=(_NORMALIZE,)),
    "demonstrations": Part(uses=(_NORMALIZE,)),
    "samples": Part(uses=(_NORMALIZE, "reward_model.normalize_samples", "sampling")),
}
PPO = Stage(
    name="PPO",
    checkpoints="checkpoints",
    unit="iteration",
    uses=(*_RUN, "checkpoint_every", "keep_checkpoints", "data", "sampling", "reward", "ppo", "evaluation"),
    without=("evaluation.num_prompts", "evaluation.batch_size"),  # of the evaluation of a finished model
)


def _is_among(name, names):
    return name in names or name.partition(".")[0] in names


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections as {section.field: value}."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update({f"{name}.{inner}": one for inner, one in flat(value).items()})
        else:
            found[name] = value
    return found


class Change(NamedTuple):
    """A setting whose value is not the one that the run was trained with last."""

    name: str
    before: Any
    now: Any
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name} {shown(self.before)} -> {shown(self.now)}"


def changes(
    config: type, before: Mapping[str, Any], now: Mapping[str, Any], same_content: Callable[[str], bool] | None = None
) -> list[Change]:
    """What differs between the settings that a run was trained with and those it is to go on with.

    Settings that either side does not know are left out: they are of an older or newer version of the program.

    Args: same_content: whether a setting that is fixed by content names the same content as before; None: always.
    """
    known = marks(config)
    found = []
    for name, value in now.items():
        if name not in before or before[name] == value:
            continue
        mark = known[name]
        same = mark.of(before[name]) == mark.of(value)
        if mark.by_content:
            same = same_content is None or same_content(name)
        kind = Kind.FREE if mark.kind is Kind.FIXED and same else mark.kind
        found.append(Change(name, before[name], value, kind))
    return found


def refuse_fixed(found: Collection[Change], run: str) -> None:
    """Raises UserError, with both values of each and the flags to go on with, where a fixed setting has changed."""
    refused = [change for change in found if change.kind is Kind.FIXED]
    if not refused:
        return
    refused = [*_estimator_behind(refused, found), *refused]
    differences = "; ".join(f"{change.name} is {shown(change.now)}, not {shown(change.before)}" for change in refused)
    flags = " ".join(f"--config.{change.name}={_as_flag(change.before)}" for change in refused)
    raise UserError(
        f"{run} was started with other settings, which are fixed: {differences}; go on with {flags}, or use another "
        f"--workdir"
    )


def _estimator_behind(refused, found):
    """The change of estimator, where it brings a critic or group size that is refused: alone, they would not fit it."""
    return [
        change
        for change in found
        if change.name == "ppo.estimator"
        and {one.name for one in refused} & {f"ppo.{name}" for name in settings_to_let_go(change.before, change.now)}
    ]


def shown(value: Any) -> str:
    """A value in a message."""
    return str(value) if value != "" else "''"


def _as_flag(value):
    return "none" if value is None else shlex.quote(str(value))

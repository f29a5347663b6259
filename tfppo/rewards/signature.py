"""What a reward function asks for, by the names of its parameters."""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence

from tfppo.errors import UserError
from tfppo.rewards.batch import Batch

_PROMPTS, _TOKENS = "prompts", "tokens"
_RESPONSES = ("responses", "completions")  # the second one is TRL's name
_SINGULAR = ("prompt", "response")  # what the first two may be named, columns or not
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_OF_BATCH: dict[str, Callable[[Batch], object]] = {
    # Lists of its own, as it may change them: other rewards and the record of the run are to see what was sampled.
    _PROMPTS: lambda batch: list(batch.texts),
    **dict.fromkeys(_RESPONSES, lambda batch: list(batch.responses)),
    _TOKENS: lambda batch: [list(tokens) for tokens in batch.tokens],
}


class Signature:
    """The parameters of a reward function.

    `prompts`, `responses` (or `completions`) and `tokens` are those of the batch; any other name is a column of the
    data. One with a default may be missing there, and **kwargs takes all columns that have no parameter. Where neither
    `prompts` nor `responses` is a name, the first two parameters are these, whatever they are called.

    Raises: UserError where the function takes no responses.
    """

    def __init__(self, name: str, function: Callable):
        self.name = name
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):  # a function in C may have none to show
            parameters = [inspect.Parameter(known, _POSITIONAL[0]) for known in (_PROMPTS, _RESPONSES[0])]
        single = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = any(p.name in (_PROMPTS, *_RESPONSES) for p in single)
        first = [] if named else [p for p in single if p.kind in _POSITIONAL][:2]
        takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if not (any(p.name in _RESPONSES for p in single) if named else len(first) == 2 or takes_more):
            shown = ", ".join(map(str, parameters))
            raise UserError(
                f"reward {name} takes ({shown}); write def {name}(prompts, responses), and after them, by name, tokens "
                f"or columns of the data"
            )
        self._num_first = 0 if named else 2
        self._first_names = [p.name for p in first]
        self._others = single[len(first) :]
        self._all_names = {p.name for p in single}

    @property
    def required(self) -> list[str]:
        """The columns that it cannot do without."""
        return [p.name for p in self._others if p.name not in _OF_BATCH and p.default is p.empty]

    def takes(self, column: str) -> bool:
        """Whether it is given this column where the data have it."""
        asked = {p.name for p in self._others}
        return column not in _OF_BATCH and (column in asked or self._takes_all and column not in self._all_names)

    def check(self, records: Sequence[Mapping[str, object]], places: Sequence[str], source: str) -> None:
        """Raises UserError where records of the data lack a column that it needs, naming those that there are.

        So too where it has neither `prompts` nor `responses`, and its first two parameters are named like columns. A
        column that is None in a record is not there.

        Args: places: where each record stands.
        """
        present = sorted({name for record in records for name, value in record.items() if value is not None})
        for name, usual in zip(self._first_names, _SINGULAR, strict=False):
            if name in present and name != usual:
                raise UserError(
                    f"reward {self.name}: its first two parameters get prompts and responses, but {name!r} is a column "
                    f"of {source}; write def {self.name}(prompts, responses, {name})"
                )
        for name in self.required:
            lacking = [place for record, place in zip(records, places, strict=True) if record.get(name) is None]
            if lacking and name in present:
                raise UserError(
                    f"reward {self.name} takes the column {name!r}, which {len(lacking)} of {len(records)} records of "
                    f"{source} lack (the first: {lacking[0]}); add it there, or give the parameter a default"
                )
            self._refuse_missing(name, present, source)

    def needs_check(self) -> bool:
        """Whether `check` could find something: only then need the data be read for it."""
        return bool(self.required) or any(map(operator.ne, self._first_names, _SINGULAR))

    def arguments(self, batch: Batch) -> tuple[list[object], dict[str, object]]:
        """What to call the function with: by position, and by name. Raises: UserError where a column is missing."""
        by_position: list[object] = [_OF_BATCH[name](batch) for name in (_PROMPTS, _RESPONSES[0])[: self._num_first]]
        by_name: dict[str, object] = {}
        for parameter in self._others:
            name = parameter.name
            if name in self.required:
                self._refuse_missing(name, batch.columns, "the data")
            if name in _OF_BATCH:
                value = _OF_BATCH[name](batch)
            else:
                value = list(batch.columns[name]) if name in batch.columns else parameter.default
            if parameter.kind is parameter.POSITIONAL_ONLY:
                by_position.append(value)  # a default, too: others may follow
            else:
                by_name[name] = value
        if self._takes_all:
            rest = set(batch.columns) - self._all_names - set(_OF_BATCH)
            by_name |= {name: list(batch.columns[name]) for name in sorted(rest)}
        return by_position, by_name

    def _refuse_missing(self, name, present, source):
        if name not in present:
            raise UserError(
                f"reward {self.name} takes a column {name!r}, which {source} has not; the columns are: "
                f"{', '.join(sorted(present)) or 'none'}; rename the parameter or give it a default"
            )

"""What a load took from a source, in one line: nothing is left out, and no field ignored, in silence."""

from collections import Counter
from collections.abc import Callable, Iterable

_told: set[str] = set()


def tell(line: str, once_for: str | None = None) -> None:
    """Prints a line; once in a process for all lines with the same `once_for`, which is the line itself by default."""
    key = once_for or line
    if key not in _told:
        _told.add(key)
        print(line, flush=True)


def counted(places: list[str], what: str) -> str:
    """What it is, how many there are, and the place of the first."""
    return f"{what}: {len(places)} (the first: {places[0]})"


def no_field(name: str) -> bool:
    """That no reward function takes a field, as in stages without rewards."""
    return False


class LoadReport:
    """Counts the records of a source, the fields that they have and those that are used, and what is left out.

    Args: rewarded: whether a reward function takes a field, by its name.
    """

    def __init__(self, source: str, rewarded: Callable[[str], bool] = no_field):
        self.source, self._rewarded = source, rewarded
        self.num_records = 0
        self._fields: dict[str, None] = {}  # in the order in which they came
        self._taken: Counter[tuple[str, str]] = Counter()
        self._left_out: dict[str, list[str]] = {}
        self._notes: dict[str, list[str]] = {}
        self._ends: list[str] = []

    def add(self, fields: Iterable[str], taken: Iterable[tuple[str, str]]) -> None:
        """Counts a record with its fields and what they were taken for."""
        self.num_records += 1
        self._fields.update(dict.fromkeys(fields))
        self._taken.update(taken)

    def leave_out(self, where: str, why: str) -> None:
        """Counts a record that is not used."""
        self._left_out.setdefault(why, []).append(where)

    def note(self, where: str, what: str) -> None:
        """Counts a record that is used although something about it is worth a word."""
        self._notes.setdefault(what, []).append(where)

    def end_with(self, remark: str) -> None:
        """Adds a remark about the whole source."""
        self._ends.append(remark)

    def has_left_out(self) -> bool:
        """Whether a record is not used."""
        return bool(self._left_out)

    def line(self) -> str:
        """The line."""
        used = {name for _, name in self._taken}
        others = [name for name in self._fields if name not in used]
        rewarded = [name for name in others if self._rewarded(name)]
        unused = [name for name in others if name not in rewarded]
        parts = [f"data: {self.source}: {self.num_records} records", *self._sources()]
        goes = "goes" if len(rewarded) == 1 else "go"
        parts += [f"{', '.join(map(repr, rewarded))} {goes} to the reward"] if rewarded else []
        parts += [f"unused fields: {', '.join(map(repr, unused))}"] if unused else []
        parts += ["left out: " + ", ".join(counted(p, why) for why, p in self._left_out.items())] * self.has_left_out()
        parts += [counted(places, what) for what, places in self._notes.items()]
        return "; ".join(parts + self._ends)

    def _sources(self):
        """ "response from response (3), completion (2)": numbers where a field is not in every record."""
        by_role: dict[str, list[str]] = {}
        for (role, name), count in self._taken.items():
            number = "" if count == self.num_records else f" ({count})"
            by_role.setdefault(role, []).append(f"{name!r}{number}")
        return [f"{role} from {' and '.join(names)}" for role, names in by_role.items()]

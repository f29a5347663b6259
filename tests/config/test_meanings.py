"""What a setting means is read from the comment where it is defined."""

import dataclasses

import pytest

from tfppo.config import Config, meanings
from tfppo.stages.overrides import config_sections

SOURCE = """
@dataclass
class Part:
    beside: int = 1  # on its line
    # Two lines above it,
    # which end in a full stop.
    above: str = "a # b"
    # A heading
    below_a_heading: int = 2
    # Above is not read. Beside is there.
    both: int = 3  # beside
    wrapped: tuple[str, ...] = (  # at the start
        "x",
    )
    without: int = 4

    def method(self):
        local: int = 5  # none of its
"""


def test_comments_become_meanings(tmp_path, monkeypatch):
    (tmp_path / "settings.py").write_text(SOURCE)
    monkeypatch.setattr(meanings, "_SOURCE", tmp_path / "settings.py")
    assert meanings.meanings.__wrapped__() == {
        "Part": {
            "beside": "on its line",
            "above": "Two lines above it, which end in a full stop.",
            "below_a_heading": "",
            "both": "beside",
            "wrapped": "at the start",
            "without": "",
        }
    }


@pytest.mark.parametrize("section", [Config, *config_sections().values()], ids=lambda section: section.__name__)
def test_every_setting_says_what_it_means(section):
    said = meanings.meanings()[section.__name__]
    names = [field.name for field in dataclasses.fields(section) if field.name not in config_sections()]
    assert [name for name in names if not said[name]] == []

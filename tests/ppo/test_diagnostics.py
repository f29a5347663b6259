"""Each warning comes once, after its sign has held for so many iterations in a row."""

import pytest

from tfppo.ppo.diagnostics import Diagnostics

HEALTHY = {
    "policy/entropy": 2.0,
    "response/length": 10.0,
    "response/stopped": 0.5,
    "objective/kl": 0.3,
    "objective/largest_advantage": 1.5,
    "value/explained_variance": 0.4,
}
# what is wrong, iterations until it is said, words of the text, and the edge at which it does not hold yet
SIGNS = [
    ({"objective/kl": -0.101}, 10, "KL to the reference has been negative", {"objective/kl": -0.1}),
    ({"policy/entropy": 0.099}, 3, "entropy has fallen", {"policy/entropy": 0.1}),
    ({"objective/largest_advantage": 0.0}, 1, "all advantages are zero", {"objective/largest_advantage": 1e-7}),
    (
        {"objective/groups_without_spread": 0.51},
        3,
        "most prompts have had responses of one score each",
        {"objective/groups_without_spread": 0.5},
    ),
    (
        {"value/explained_variance": -0.01},
        30,
        "value function has explained nothing",
        {"value/explained_variance": 0.0},
    ),
    ({"response/stopped": 0.0}, 5, "run into the length limit", {"response/stopped": 0.01}),
]
IDS = [next(iter(sign)) for sign, *_ in SIGNS]


def watched(**circumstances):
    """Diagnostics that have seen one healthy iteration."""
    diagnostics = Diagnostics(**{"has_critic": True, "can_stop": True, **circumstances})
    assert diagnostics.update(HEALTHY) == []
    return diagnostics


@pytest.mark.parametrize(("sign", "patience", "words", "_"), SIGNS, ids=IDS)
def test_a_warning_comes_once_and_in_time(sign, patience, words, _):
    diagnostics = watched()
    said = [diagnostics.update({**HEALTHY, **sign}) for _ in range(patience + 40)]
    assert [number for number, warnings in enumerate(said, start=1) if warnings] == [patience]
    (warning,) = said[patience - 1]
    assert warning.startswith("warning: ") and words in warning and "\n" not in warning
    assert diagnostics.update(HEALTHY) == []
    assert not any(diagnostics.update({**HEALTHY, **sign}) for _ in range(patience + 1))


@pytest.mark.parametrize(("sign", "patience", "_", "edge"), SIGNS, ids=IDS)
def test_it_has_to_hold_in_a_row(sign, patience, _, edge):
    diagnostics = watched()
    for _ in range(3):
        for _ in range(patience - 1):
            assert diagnostics.update({**HEALTHY, **sign}) == []
        assert diagnostics.update({**HEALTHY, **edge}) == []


def test_healthy_runs_and_edges_say_nothing():
    for edge in [{}, *(sign[3] for sign in SIGNS)]:
        diagnostics = watched()
        assert not any(diagnostics.update({**HEALTHY, **edge}) for _ in range(50))


def test_what_cannot_be_wrong_is_not_watched():
    diagnostics = watched(has_critic=False, can_stop=False)
    nothing = {"value/explained_variance": -1.0, "response/stopped": 0.0}
    assert not any(diagnostics.update({**HEALTHY, **nothing}) for _ in range(50))


def test_several_at_once():
    diagnostics = watched()
    said = [diagnostics.update({**HEALTHY, **SIGNS[1][0], **SIGNS[-1][0]}) for _ in range(5)]
    assert [len(warnings) for warnings in said] == [0, 0, 1, 0, 1]

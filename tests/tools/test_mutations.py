"""The mutation check: what each operator does to a small function, and that the table fits the source."""

import ast
import sys
import time
from pathlib import Path

import pytest
from binaries import ROOT

sys.path.append(str(ROOT / "tools"))

import mutation_check  # noqa: E402  the path comes first
from mutations import MUTATIONS, cpp, operators  # noqa: E402
from mutations.operators import (  # noqa: E402
    assign,
    drop_argument,
    drop_operand,
    negate,
    replace,
    return_early,
    set_argument,
    set_index,
    swap_operator,
    unwrap,
)

PYTHON = '''"""A file."""


class Wide:
    def area(self, x, é=2):  # a comment
        """A doc."""
        y = tf.maximum(x[:, 1:] * self.scale, tf.sqrt(x), axis=1)  # é
        y += x / (é or 1.0)

        def inner(z):
            return y if not z else other(y - z, named=z)

        return inner(
            y,
        )


def inner(z):
    return z
'''


def changed_lines(operator, function="Wide.area"):
    """The lines that an operator adds, without their indentation; all others stay as they are."""
    before, after = PYTHON.splitlines(), operators.apply_to_function(PYTHON, function, operator).splitlines()
    ast.parse("\n".join(after))
    return [line.strip() for line in after if line not in before]


@pytest.mark.parametrize(
    ("operator", "line"),
    [
        (drop_argument("tf.maximum", 1), "y = tf.maximum(x[:, 1:] * self.scale, axis=1)  # é"),
        (drop_argument("tf.maximum", "axis"), "y = tf.maximum(x[:, 1:] * self.scale, tf.sqrt(x))  # é"),
        (set_argument("tf.maximum", "axis", "0"), "y = tf.maximum(x[:, 1:] * self.scale, tf.sqrt(x), axis=0)  # é"),
        (
            set_argument("tf.sqrt", 0, "-x", having="x"),
            "y = tf.maximum(x[:, 1:] * self.scale, tf.sqrt((-x)), axis=1)  # é",
        ),
        (unwrap("tf.maximum", 1), "y = tf.sqrt(x)  # é"),
        (drop_operand("self.scale"), "y = tf.maximum(x[:, 1:], tf.sqrt(x), axis=1)  # é"),
        (drop_operand("é or 1.0", beside="x"), "y += x"),
        (swap_operator("+", "-", beside="y"), "y -= x / (é or 1.0)"),
        (swap_operator("/", "*", beside="x"), "y += (x * (é or 1.0))"),
        (negate("z"), "return y if (not (not z)) else other(y - z, named=z)"),
        (set_index("x", ":, 2:"), "y = tf.maximum(x[:, 2:] * self.scale, tf.sqrt(x), axis=1)  # é"),
        (replace("self.scale", "1.0"), "y = tf.maximum(x[:, 1:] * 1.0, tf.sqrt(x), axis=1)  # é"),
        (replace("tf.sqrt", "tf.square"), "y = tf.maximum(x[:, 1:] * self.scale, tf.square(x), axis=1)  # é"),
        (assign("y", "-x"), "y = (-x)  # é"),
        (return_early("x"), "return x"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_an_operator_changes_one_place_and_keeps_the_rest(operator, line):
    assert changed_lines(operator) == [line]


def test_a_function_is_found_in_a_class_in_a_function_and_at_the_top():
    assert changed_lines(return_early("0"), "Wide.area.inner") == ["return 0"]
    assert changed_lines(replace("z", "0"), "inner") == ["return 0"]


@pytest.mark.parametrize(
    ("operator", "function", "message"),
    [
        (replace("x", "0"), "Wide.area", "3 places in Wide.area"),
        (unwrap("tf.minimum"), "Wide.area", "0 places in Wide.area"),
        (unwrap("tf.sqrt", 1), "Wide.area", "0 places"),
        (drop_argument("tf.sqrt", "axis"), "Wide.area", "0 places"),
        (return_early("0"), "Wide.volume", "0 times volume of Wide.volume"),
    ],
    ids=["everywhere", "nowhere", "no_argument", "no_name", "no_function"],
)
def test_what_does_not_fit_once_is_refused(operator, function, message):
    with pytest.raises(LookupError, match=message):
        operators.apply_to_function(PYTHON, function, operator)


CPP = """
static float twice(float x);  // twice(x) { comment
template <typename T> static T twice(T x) {
  if (x == '}') return /* } */ x *
      2;
  return 2;
}
int other(int x) { return twice(x) * 2; }
"""


def test_a_piece_of_a_cpp_function_is_replaced():
    changed = cpp.apply_to_function(CPP, "twice", cpp.text("x * 2", "x"))
    assert changed == CPP.replace("x *\n      2", "x")
    for old, function in (("2", "twice"), ("3", "twice"), ("2", "thrice")):
        with pytest.raises(LookupError, match=function):
            cpp.apply_to_function(CPP, function, cpp.text(old, ""))


def test_names_of_mutations_are_unique_and_their_tests_are_there():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)
    assert [mutation.name for mutation in MUTATIONS if not (ROOT / mutation.tests).exists()] == []


def test_every_mutation_fits_the_source_and_changes_it():
    for mutation in MUTATIONS:
        source = mutation_check.source_of(mutation)
        changed = mutation.applied(source)
        assert changed != source, mutation.name
        if not mutation.is_cpp:
            assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), mutation.name


def test_a_mutation_that_does_not_fit_is_named():
    wrong = MUTATIONS[0]._replace(name="gone", function="nowhere")
    assert mutation_check.misfits([wrong, MUTATIONS[1]]) == [
        f"gone does not fit tfppo/{wrong.file}: 0 times nowhere of nowhere, instead of once"
    ]


def test_tests_that_hang_are_ended_with_all_that_they_started(monkeypatch, tmp_path):
    hanging = "sleep 60 & echo $! > child; echo $XDG_CACHE_HOME > cache_home; wait"
    monkeypatch.setattr(mutation_check, "PYTEST", ["sh", "-c", hanging])
    assert mutation_check.verdict_of(*mutation_check.run_tests(tmp_path, [], timeout=0.3)) == ("timed out", "")
    assert (tmp_path / "cache_home").read_text().strip() == str(tmp_path / "cache")
    state = Path(f"/proc/{int((tmp_path / 'child').read_text())}/stat")

    def ended():
        return not state.exists() or state.read_text().split()[2] == "Z"

    deadline = time.monotonic() + 10
    while not ended() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended()


@pytest.mark.parametrize(
    ("code", "output", "verdict"),
    [
        (0, "..\n3 passed in 1s\n", ("survived", "3 passed in 1s")),
        (1, "F\nFAILED tests/ops/test_kl.py::test_k3[a] - x\n1 failed\n", ("killed", "test_kl.py::test_k3[a]")),
        (4, "no such file\n", ("broken (4)", "no such file")),
    ],
)
def test_verdicts(code, output, verdict):
    assert mutation_check.verdict_of(code, output) == verdict

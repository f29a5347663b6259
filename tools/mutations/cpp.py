"""Mutations of C++ files: a piece of one function's body, found without a syntax tree."""

import re

_NO_CODE = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])'", re.DOTALL)
_BODY = re.compile(r"\s*(?:(?:const|noexcept|override)\b\s*)*\{")


def text(old, new):
    """Replaces a piece of the function's body, written in any layout, by another: body -> (new body, how often)."""
    pattern = re.compile(r"\s+".join(re.escape(word) for word in old.split()))

    def operator(body):
        return pattern.subn(lambda _: new, body)

    return operator


def apply_to_function(source, function, operator):
    """A C++ file's text after one operator. Raises: LookupError where there is not one place for it in the function."""
    spans = list(_bodies_of(source, function))
    if not spans:
        raise LookupError(f"no function {function}")
    changes = [(span, *operator(source[slice(*span)])) for span in spans]
    count = sum(number for *_, number in changes)
    if count != 1:
        raise LookupError(f"{count} places in {function}, instead of one")
    ((start, end), body, _) = next(change for change in changes if change[-1])
    return source[:start] + body + source[end:]


def _bodies_of(source, function):
    """(start, end) of the body of each definition of a function: overloads have the same name."""
    code = _NO_CODE.sub(lambda match: " " * len(match.group()), source)  # without comments and strings
    for name in re.finditer(rf"\b{re.escape(function)}\s*(?=\()", code):
        opening = _BODY.match(code, _end_of_group(code, name.end()))
        if opening:
            yield opening.end() - 1, _end_of_group(code, opening.end() - 1)


def _end_of_group(code, start):
    """Where the bracket at `start` is closed."""
    depth = 0
    for bracket in re.compile(r"[(){}]").finditer(code, start):
        depth += 1 if bracket.group() in "({" else -1
        if depth == 0:
            return bracket.end()
    raise LookupError("a bracket is not closed")

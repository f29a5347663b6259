"""What each setting means, read from the comments of settings.py, so that they are written once.

A setting's meaning is the comment on its line; where that has none, the lines of comment above it, if they are whole
sentences: they end in a full stop. A heading does not.
"""

import ast
import functools
import io
import tokenize
from pathlib import Path

_SOURCE = Path(__file__).with_name("settings.py")


@functools.cache
def meanings() -> dict[str, dict[str, str]]:
    """The meaning of each setting: name of the dataclass -> name of the field -> one line, "" where it has none."""
    text = _SOURCE.read_text(encoding="utf-8")
    comments, alone = _comments(text)
    return {
        node.name: {
            field.target.id: _meaning(field, comments, alone)
            for field in node.body
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        }
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
    }


def _comments(text):
    """The comments of a source by line, and the numbers of the lines that hold nothing else."""
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT]
    comments = {token.start[0]: token.string.lstrip("#").strip() for token in tokens}
    return comments, {token.start[0] for token in tokens if token.line.lstrip().startswith("#")}


def _meaning(field, comments, alone):
    beside = [comments[line] for line in range(field.lineno, field.end_lineno + 1) if line in comments]
    if beside:
        return " ".join(beside)
    first = field.lineno
    while first - 1 in alone:
        first -= 1
    above = " ".join(comments[line] for line in range(first, field.lineno))
    return above if above.endswith(".") else ""

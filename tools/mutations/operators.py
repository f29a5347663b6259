"""Operators of mutations: each changes one place of one function and leaves the rest of the file as it is.

An operator is a function of a function's syntax tree, which yields (node, text) for every place that it could change:
the text is to stand in the node's place. Places are named by expressions, written in any layout. A call may also be
named by the function that it calls, so "tf.sqrt" names tf.sqrt(x).
"""

import ast
import copy
import functools

_SYMBOLS = {"+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div}
_ATOMS = (ast.Name, ast.Constant, ast.Attribute, ast.Call, ast.Subscript, ast.Tuple, ast.List)


def drop_argument(callee, argument, having=None):
    """Leaves an argument of a call out, by position or name; `having`: another argument that names the call."""

    def operator(function):
        for call in _calls(function, callee, having):
            dropped = _argument(call, argument)
            if dropped is not None:
                positional = [one for one in call.args if one is not dropped]
                named = [one for one in call.keywords if one.value is not dropped]
                yield call, ast.unparse(ast.Call(call.func, positional, named))

    return operator


def set_argument(callee, argument, by, having=None):
    """Replaces an argument of a call, by position or name; `having`: an argument that names the call."""

    def operator(function):
        for call in _calls(function, callee, having):
            replaced = _argument(call, argument)
            if replaced is not None:
                yield replaced, _text(by)

    return operator


def unwrap(callee, argument=0, having=None):
    """Replaces a call by one of its arguments."""

    def operator(function):
        for call in _calls(function, callee, having):
            kept = _argument(call, argument)
            if kept is not None:
                yield call, _text(kept)

    return operator


def drop_operand(operand, beside=None):
    """Replaces a binary operation by its other operand; `beside`: what that is."""

    def operator(function):
        for node in _nodes(function, ast.BinOp):
            for dropped, kept in ((node.left, node.right), (node.right, node.left)):
                if _is(dropped, operand) and (beside is None or _is(kept, beside)):
                    yield node, _text(kept)

    return operator


def swap_operator(old, new, beside):
    """Replaces the operator of a binary operation, or of an assignment such as +=; `beside`: one of its operands."""

    def operator(function):
        for node in _nodes(function, ast.BinOp, ast.AugAssign):
            operands = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
            if isinstance(node.op, _SYMBOLS[old]) and any(_is(operand, beside) for operand in operands):
                changed = copy.copy(node)
                changed.op = _SYMBOLS[new]()
                yield node, _text(changed) if isinstance(node, ast.BinOp) else ast.unparse(changed)

    return operator


def negate(mentioned):
    """Negates the test of the if, while or conditional expression that mentions an expression."""

    def operator(function):
        for node in _nodes(function, ast.If, ast.While, ast.IfExp):
            if any(_is(part, mentioned) for part in ast.walk(node.test)):
                yield node.test, f"(not ({ast.unparse(node.test)}))"

    return operator


def set_index(of, index):
    """Replaces what stands between the brackets after an expression."""

    def operator(function):
        for node in _nodes(function, ast.Subscript):
            if _is(node.value, of) and isinstance(node.ctx, ast.Load):
                yield node, f"{ast.unparse(node.value)}[{index}]"

    return operator


def replace(expression, by):
    """Replaces an expression, for one a name or a constant, by another."""

    def operator(function):
        for node in _nodes(function, ast.expr):
            if ast.unparse(node) == _normal(expression) and not isinstance(getattr(node, "ctx", None), ast.Store):
                yield node, _text(by)

    return operator


def assign(target, by):
    """Replaces what is assigned to a target."""

    def operator(function):
        for node in _nodes(function, ast.Assign):
            if [ast.unparse(one) for one in node.targets] == [_normal(target)]:
                yield node.value, _text(by)

    return operator


def return_early(by):
    """Returns an expression before the function's first statement; code that it leaves unreached stays."""

    def operator(function):
        first = function.body[1 if ast.get_docstring(function) is not None else 0]
        line = min([first.lineno, *(one.lineno for one in getattr(first, "decorator_list", ()))])
        here = ast.Pass(lineno=line, col_offset=first.col_offset, end_lineno=line, end_col_offset=first.col_offset)
        yield here, f"return {by}\n{' ' * first.col_offset}"

    return operator


def apply_to_function(source, function, operator):
    """A Python file's text after one operator. Args: function: its qualified name, such as "Policy.call.inner".

    Raises: LookupError where there is not one such function, or not one place for the operator.
    """
    places = list(operator(_function_of(ast.parse(source), function)))
    if len(places) != 1:
        raise LookupError(f"{len(places)} places in {function}, instead of one")
    ((node, text),) = places
    lines = source.encode().splitlines(keepends=True)  # offsets count bytes
    before = [*lines[: node.lineno - 1], lines[node.lineno - 1][: node.col_offset]]
    after = [lines[node.end_lineno - 1][node.end_col_offset :], *lines[node.end_lineno :]]
    return b"".join([*before, text.encode(), *after]).decode()


def _function_of(tree, qualified_name):
    for name in qualified_name.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        inside = [node for node in ast.walk(tree) if isinstance(node, kinds) and node.name == name and node is not tree]
        found = [node for node in inside if node in tree.body] or inside  # a function may stand under an if or a with
        if len(found) != 1:
            raise LookupError(f"{len(found)} times {name} of {qualified_name}, instead of once")
        tree = found[0]
    return tree


def _nodes(function, *kinds):
    return [node for node in ast.walk(function) if isinstance(node, kinds)]


def _calls(function, callee, having):
    for call in _nodes(function, ast.Call):
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
        if ast.unparse(call.func) == callee and (having is None or any(_is(one, having) for one in arguments)):
            yield call


def _argument(call, argument):
    """The expression of an argument, by position or name; None where the call has no such argument."""
    if isinstance(argument, int):
        return call.args[argument] if argument < len(call.args) else None
    return next((keyword.value for keyword in call.keywords if keyword.arg == argument), None)


def _is(node, expression):
    """Whether a node is an expression, or a call of the function that is named."""
    expression = _normal(expression)
    return ast.unparse(node) == expression or isinstance(node, ast.Call) and ast.unparse(node.func) == expression


@functools.cache
def _normal(expression):
    return ast.unparse(ast.parse(expression, mode="eval").body)


def _text(expression):
    """Text that may stand wherever an expression stood."""
    node = ast.parse(expression, mode="eval").body if isinstance(expression, str) else expression
    return ast.unparse(node) if isinstance(node, _ATOMS) else f"({ast.unparse(node)})"

"""Python code of checked expressions: built as a syntax tree of Python's own, never as text.

Nothing that a user wrote is in it but numbers and texts as constants.
"""

import ast
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

from services.features.domain.definitions import FeatureType, Scalar
from services.features.domain.expression import Node

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)
DOUBLE_MAX: Final = math.ldexp(1 - 2**-53, 1024)

Run = Callable[[Iterable[Sequence[Scalar | None]], Callable[[Scalar | None], None], Callable[[int], None]], None]


def _log(value: float) -> float | None:
    return math.log(value) if value > 0 else None


def _exp(value: float) -> float | None:
    try:
        return math.exp(value)
    except OverflowError:
        return None


# What generated code can reach, all of it.
_NAMES: Final[Mapping[str, Any]] = {
    "__builtins__": {},
    "abs": abs,
    "ceil": math.ceil,
    "exp": _exp,
    "float": float,
    "floor": math.floor,
    "log": _log,
    "max": max,
    "min": min,
}


def compile_tree(root: Node, inputs: Sequence[str]) -> Run:
    """Return `def run(rows, append, overflow): for (v0, v1, ...) in rows: append(<expression>)`."""
    code = _Code({name: f"v{index}" for index, name in enumerate(inputs)})
    target = ast.Tuple([ast.Name(f"v{index}", ast.Store()) for index in range(len(inputs))], ast.Store())
    loop = ast.For(
        target=target if inputs else ast.Name("_", ast.Store()),
        iter=_load("rows"),
        body=[ast.Expr(_call("append", code.expression(root)))],
        orelse=[],
    )
    arguments = ast.arguments(
        posonlyargs=[],
        args=[ast.arg("rows"), ast.arg("append"), ast.arg("overflow")],
        kwonlyargs=[],
        kw_defaults=[],
        defaults=[],
    )
    function = ast.FunctionDef(name="run", args=arguments, body=[loop], decorator_list=[])
    if hasattr(function, "type_params"):  # Python 3.12
        function.type_params = []
    module = ast.fix_missing_locations(ast.Module([function], type_ignores=[]))
    scope = dict(_NAMES)
    exec(compile(module, "<on-demand feature>", "exec"), scope)  # noqa: S102  the tree was built by us, name by name
    return cast("Run", scope["run"])


class _Code:
    """Makes Python's syntax tree of a checked one. Operands are taken from left to right up to the first null."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._count = 0

    def expression(self, node: Node) -> ast.expr:
        if node.kind == "literal":
            return ast.Constant(node.value)
        if node.kind == "input":
            return _load(self._variables[str(node.value)])
        if node.kind == "if":
            test, yes, no = map(self.expression, node.operands)
            return ast.IfExp(test, yes, no)
        if node.kind == "coalesce":
            return self._coalesce(node.operands)
        if node.kind in ("and", "or"):
            return self._decided(node.operands, node.kind == "or")
        return self._strict(node)

    def _bound(self, node: Node) -> tuple[ast.expr, ast.expr]:
        """Return how to compute a value the first time, and how to get it again."""
        first = self.expression(node)
        if isinstance(first, ast.Constant | ast.Name):
            return first, first
        name = self._temporary()
        return ast.NamedExpr(ast.Name(name, ast.Store()), first), _load(name)

    def _temporary(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def _strict(self, node: Node) -> ast.expr:
        """Null if an operand is; constants are asked nothing, unless they are null."""
        tests: list[ast.expr] = []
        again: list[ast.expr] = []
        for operand in node.operands:
            first, later = self._bound(operand)
            again.append(later)
            if not isinstance(first, ast.Constant) or first.value is None:
                tests.append(_is(first, None))
        value = self._value(node, again)
        if not tests:
            return value
        return ast.IfExp(tests[0] if len(tests) == 1 else ast.BoolOp(ast.Or(), tests), ast.Constant(None), value)

    def _value(self, node: Node, operands: list[ast.expr]) -> ast.expr:
        if node.kind in _COMPARE:
            return ast.Compare(operands[0], [_COMPARE[node.kind]()], [operands[1]])
        if node.kind == "not":
            return ast.UnaryOp(ast.Not(), operands[0])
        if node.kind in ("double", "exp", "log"):
            return _call({"double": "float"}.get(node.kind, node.kind), operands[0])
        if node.kind in ("min", "max"):
            return _call(node.kind, *operands) if len(operands) > 1 else operands[0]
        return self._arithmetic(node, operands)

    def _arithmetic(self, node: Node, operands: list[ast.expr]) -> ast.expr:
        if node.kind in _BINARY:
            value = self._limited(node, ast.BinOp(operands[0], _BINARY[node.kind](), operands[1]))
            if node.kind in ("/", "%"):
                return ast.IfExp(operands[1], value, ast.Constant(None))
            return value
        if node.kind == "negate":
            return self._limited(node, ast.UnaryOp(ast.USub(), operands[0]))
        return self._limited(node, _call(node.kind, operands[0]))

    def _limited(self, node: Node, value: ast.expr) -> ast.expr:
        """The value if its type can hold it; else null, or for a whole number an error."""
        whole = node.type is FeatureType.INT64
        least, most = (INT64_MIN, INT64_MAX) if whole else (-DOUBLE_MAX, DOUBLE_MAX)
        name = self._temporary()
        bound = ast.NamedExpr(ast.Name(name, ast.Store()), value)
        fits = ast.Compare(ast.Constant(least), [ast.LtE(), ast.LtE()], [bound, ast.Constant(most)])
        other = _call("overflow", ast.Constant(node.position)) if whole else ast.Constant(None)
        return ast.IfExp(fits, _load(name), other)

    def _coalesce(self, operands: tuple[Node, ...]) -> ast.expr:
        if len(operands) == 1:
            return self.expression(operands[0])
        first, again = self._bound(operands[0])
        return ast.IfExp(_is(first, None), self._coalesce(operands[1:]), again)

    def _decided(self, operands: tuple[Node, ...], by: bool) -> ast.expr:
        """`by` if one side is; else null if one side is null; else the opposite."""
        (left, left_again), (right, right_again) = map(self._bound, operands)
        null = ast.BoolOp(ast.Or(), [_is(left_again, None), _is(right_again, None)])
        undecided = ast.IfExp(null, ast.Constant(None), ast.Constant(not by))
        return ast.IfExp(ast.BoolOp(ast.Or(), [_is(left, by), _is(right, by)]), ast.Constant(by), undecided)


_BINARY: Final[Mapping[str, type[ast.operator]]] = {
    "+": ast.Add,
    "-": ast.Sub,
    "*": ast.Mult,
    "/": ast.Div,
    "%": ast.Mod,
}
_COMPARE: Final[Mapping[str, type[ast.cmpop]]] = {
    "==": ast.Eq,
    "!=": ast.NotEq,
    "<": ast.Lt,
    "<=": ast.LtE,
    ">": ast.Gt,
    ">=": ast.GtE,
}


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(_load(name), list(arguments), [])


def _is(value: ast.expr, constant: bool | None) -> ast.expr:
    if isinstance(value, ast.Constant):  # `is` with a literal is a warning of Python's
        return ast.Constant(value.value is constant)
    return ast.Compare(value, [ast.Is()], [ast.Constant(constant)])

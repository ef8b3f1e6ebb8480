"""Reads `@pytest.mark.rpc(method, case)` from test files without importing them.

The method may be a text, a constant of the same file, or both joined by `+` or an f-string. A file may give its marks a
short name with a function whose only statement returns one.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CASES = ("happy", "error")


class Unreadable(Exception):
    """A mark whose arguments cannot be read, or that stands where no test is; says where, and what is wanted."""


@dataclass(frozen=True)
class RpcMark:
    """One mark: the RPC's full name, the case, and where it stands."""

    rpc: str
    case: str
    path: Path
    line: int


def marks_below(folder: Path) -> list[RpcMark]:
    """Every mark in the test files below a folder."""
    files = (path for path in sorted(folder.rglob("test_*.py")) if "node_modules" not in path.parts)
    return [mark for path in files for mark in marks_of(path)]


def marks_of(path: Path) -> list[RpcMark]:
    """Every mark of one file. Raises `Unreadable`."""
    return list(_File(path).marks())


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._tree = ast.parse(path.read_text("utf-8"))
        self._constants = dict(_constants(self._tree))
        self._short_names = {
            node.name: node for node in self._tree.body if isinstance(node, ast.FunctionDef) and _mark_in(node)
        }

    def marks(self) -> Iterator[RpcMark]:
        inside = {id(found) for function in self._short_names.values() for found in ast.walk(function)}
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("test"):
                self._refuse_marks_on(node)
            if isinstance(node, ast.Call) and id(node) not in inside and self._is_mark(node):
                yield self._mark(node)

    def _is_mark(self, node: ast.expr) -> bool:
        if not isinstance(node, ast.Call):
            return False
        return _is_rpc(node) or (isinstance(node.func, ast.Name) and node.func.id in self._short_names)

    def _refuse_marks_on(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for decorator in function.decorator_list:
            if self._is_mark(decorator):
                raise Unreadable(f"{self._path}:{decorator.lineno}: want the mark on a test, got {function.name}")

    def _mark(self, node: ast.Call) -> RpcMark:
        rpc, case = self._arguments(node)
        if case not in CASES:
            raise Unreadable(f"{self._path}:{node.lineno}: want the case happy or error, got {case!r}")
        return RpcMark(rpc, case, self._path, node.lineno)

    def _arguments(self, node: ast.Call) -> tuple[str, str]:
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        values = [self._text(value, self._constants) for value in given]
        if isinstance(node.func, ast.Name):
            short_name = self._short_names[node.func.id]
            names = self._constants | dict(zip([one.arg for one in short_name.args.args], values, strict=True))
            values = [self._text(value, names) for value in _mark_in(short_name)]
        if len(values) != 2:
            raise Unreadable(f"{self._path}:{node.lineno}: want a method and a case, got {len(values)} arguments")
        return values[0], values[1]

    def _text(self, node: ast.expr, names: Mapping[str, str]) -> str:
        match node:
            case ast.Constant(value=str() as text):
                return text
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._text(left, names) + self._text(right, names)
            case ast.JoinedStr(values=parts):
                return "".join(self._text(part, names) for part in parts)
            case ast.FormattedValue(value=value):
                return self._text(value, names)
        raise Unreadable(f"{self._path}:{node.lineno}: want texts and constants of this file, got {ast.unparse(node)}")


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str() as text)):
                yield name, text
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str() as text)):
                yield name, text


def _is_rpc(node: ast.Call) -> bool:
    return ast.unparse(node.func) in ("pytest.mark.rpc", "mark.rpc")


def _mark_in(function: ast.FunctionDef) -> list[ast.expr]:
    """The arguments of the mark that a function does nothing but return; none when it does something else."""
    match function.body:
        case [ast.Return(value=ast.Call() as call)] if _is_rpc(call):
            return [*call.args, *(keyword.value for keyword in call.keywords)]
    return []

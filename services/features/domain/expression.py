"""The language of on-demand features: text becomes a checked tree, or an error with position, want and got.

Arithmetic (+ - * / %), comparison, and, or, not, if(c, a, b), coalesce, abs, min, max, log, exp, floor and ceil over
named inputs, numbers, 'texts', true, false and null. Nothing else can be written, so there is nothing to forbid. Types
are settled here: `+ - * %`, min, max and abs of two INT64 are INT64, with a DOUBLE they are DOUBLE; `/`, log and exp
are DOUBLE; floor and ceil are INT64.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from services.features.domain.definitions import FeatureType, Scalar

MAX_EXPRESSION_CHARS: Final = 2_000
MAX_EXPRESSION_DEPTH: Final = 100
MAX_EXPRESSION_NESTING: Final = 50
INT64_MAX: Final = 2**63 - 1

_NUMBERS: Final = (FeatureType.DOUBLE, FeatureType.INT64)


class ExpressionError(Exception):
    """Says where an expression is wrong: `position` counts characters from 1."""

    def __init__(self, position: int, want: str, got: str) -> None:
        super().__init__(f"character {position}: want {want}, got {got}")
        self.position = position
        self.want = want
        self.got = got


@dataclass(frozen=True, slots=True)
class Node:
    """One node of a checked tree. `kind` is an operator or function, "literal" or "input"; None is the type of null."""

    kind: str
    type: FeatureType | None
    position: int
    operands: tuple["Node", ...] = ()
    value: Scalar | None = None
    depth: int = 1


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


_TOKEN: Final = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<text>'[^'\\\x00-\x1f]*'|\"[^\"\\\x00-\x1f]*\")"
    r"|(?P<operator><=|>=|==|!=|[-+*/%<>(),])",
    re.ASCII,
)
_COMPARISONS: Final = ("==", "!=", "<", "<=", ">", ">=")
_CONSTANTS: Final[Mapping[str, bool | None]] = {"true": True, "false": False, "null": None}
RESERVED_WORDS: Final = frozenset({"and", "or", "not", *_CONSTANTS})
_END: Final = "end of expression"


def parse_expression(text: str, inputs: Mapping[str, FeatureType], result: FeatureType) -> Node:
    """Return the checked tree of an expression over these inputs whose value has the type `result`.

    Raises ExpressionError: the first thing that is wrong. An INT64 expression is good for a DOUBLE result.
    """
    if len(text) > MAX_EXPRESSION_CHARS:
        raise ExpressionError(
            MAX_EXPRESSION_CHARS + 1, f"at most {MAX_EXPRESSION_CHARS} characters", f"{len(text)} characters"
        )
    root = _Parser(_tokens(text), inputs).parse()
    if root.type is not result and (root.type, result) != (FeatureType.INT64, FeatureType.DOUBLE):
        raise ExpressionError(root.position, f"an expression of type {result.value}", _type_name(root.type))
    return _as_double(root) if result is FeatureType.DOUBLE else root


def _tokens(text: str) -> list[_Token]:
    tokens = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(position + 1, "a value, a name or an operator", ascii(text[position : position + 1]))
        if match.lastgroup != "space":
            tokens.append(_Token(str(match.lastgroup), match.group(), position + 1))
        position = match.end()
    tokens.append(_Token("end", _END, len(text) + 1))
    return tokens


_LEFT_POWERS: Final[Mapping[str, int]] = {
    "or": 1,
    "and": 2,
    **dict.fromkeys(_COMPARISONS, 4),
    **dict.fromkeys(("+", "-"), 5),
    **dict.fromkeys(("*", "/", "%"), 6),
}
_PREFIXES: Final[Mapping[str, tuple[str, int]]] = {"not": ("not", 3), "-": ("negate", 7)}


class _Parser:
    """Precedence climbing (Pratt 1973, Top down operator precedence)."""

    def __init__(self, tokens: Sequence[_Token], inputs: Mapping[str, FeatureType]) -> None:
        self._tokens = tokens
        self._inputs = inputs
        self._next = 0
        self._open = 0

    def parse(self) -> Node:
        root = self._expression(0)
        if self._peek.kind != "end":
            self._fail("an operator or the end")
        return root

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> _Token | None:
        token = self._peek
        if token.kind in ("operator", "name") and token.text in texts:
            self._next += 1
            return token
        return None

    def _fail(self, want: str) -> NoReturn:
        got = self._peek.text if self._peek.kind == "end" else repr(self._peek.text[:40])
        raise ExpressionError(self._peek.position, want, got)

    def _expression(self, power: int) -> Node:
        """Take an expression whose operators bind tighter than `power`."""
        self._open += 1
        if self._open > MAX_EXPRESSION_NESTING:
            self._fail(f"at most {MAX_EXPRESSION_NESTING} levels of nesting")
        node = self._operand()
        while _LEFT_POWERS.get(self._peek.text, 0) > power and self._peek.kind != "text":
            token = self._peek
            self._next += 1
            node = _operation(token, (node, self._expression(_LEFT_POWERS[token.text])))
            if token.text in _COMPARISONS and self._peek.text in _COMPARISONS:
                self._fail("'and' between two comparisons")
        self._open -= 1
        return node

    def _operand(self) -> Node:
        token = self._peek
        if token.kind != "text" and token.text in _PREFIXES:
            self._next += 1
            name, power = _PREFIXES[token.text]
            return _operation(_Token("operator", name, token.position), (self._expression(power),))
        if token.kind == "end" or (token.kind == "operator" and token.text != "("):
            self._fail("a value")
        self._next += 1
        if token.kind == "number":
            return _number(token)
        if token.kind == "text":
            return Node("literal", FeatureType.STRING, token.position, value=token.text[1:-1])
        if token.kind == "name":
            return self._named(token)
        node = self._expression(0)
        self._expect(")")
        return node

    def _named(self, token: _Token) -> Node:
        if self._peek.text == "(" and self._peek.kind == "operator":
            return self._call(token)
        if token.text in _CONSTANTS:
            value = _CONSTANTS[token.text]
            return Node("literal", None if value is None else FeatureType.BOOL, token.position, value=value)
        if token.text not in self._inputs:
            known = ", ".join(sorted(self._inputs)[:10])
            raise ExpressionError(token.position, f"an input ({known})", repr(token.text[:40]))
        return Node("input", self._inputs[token.text], token.position, value=token.text)

    def _call(self, token: _Token) -> Node:
        if token.text not in FUNCTIONS:
            raise ExpressionError(token.position, f"a function ({', '.join(FUNCTIONS)})", repr(token.text[:40]))
        self._expect("(")
        operands = [self._expression(0)]
        while self._take(","):
            operands.append(self._expression(0))
        self._expect(")")
        return _operation(token, tuple(operands))

    def _expect(self, text: str) -> None:
        if self._take(text) is None:
            self._fail(repr(text))


def _number(token: _Token) -> Node:
    if token.text.isdigit():
        # The length first: turning a huge text into a number is slow, and Python refuses it with another error.
        if len(token.text) > 19 or int(token.text) > INT64_MAX:
            raise ExpressionError(token.position, f"a whole number up to {INT64_MAX}", repr(token.text[:40]))
        return Node("literal", FeatureType.INT64, token.position, value=int(token.text))
    value = float(token.text)
    if value == float("inf"):
        raise ExpressionError(token.position, "a number that fits into DOUBLE", repr(token.text[:40]))
    return Node("literal", FeatureType.DOUBLE, token.position, value=value)


def _operation(token: _Token, operands: tuple[Node, ...]) -> Node:
    # The code of coalesce has one level for each argument.
    depth = max(operand.depth for operand in operands) + (len(operands) if token.text == "coalesce" else 1)
    if depth > MAX_EXPRESSION_DEPTH:
        raise ExpressionError(token.position, f"at most {MAX_EXPRESSION_DEPTH} levels of operations", f"{depth}")
    rule, least, most = _RULES[token.text]
    if not least <= len(operands) <= most:
        count = str(least) if least == most else f"{least} to {most}"
        raise ExpressionError(token.position, f"{count} arguments of {token.text}", str(len(operands)))
    result, operands = rule(token, operands)
    return Node(token.text, result, token.position, operands, depth=depth)


_Typed = tuple[FeatureType | None, tuple[Node, ...]]


def _arithmetic(token: _Token, operands: tuple[Node, ...]) -> _Typed:
    return _numeric(operands, token.text), operands


def _to_double(token: _Token, operands: tuple[Node, ...]) -> _Typed:
    _numeric(operands, token.text)
    return FeatureType.DOUBLE, operands


def _to_whole(token: _Token, operands: tuple[Node, ...]) -> _Typed:
    _numeric(operands, token.text)
    return FeatureType.INT64, operands


def _extreme(token: _Token, operands: tuple[Node, ...]) -> _Typed:
    kind = _numeric(operands, token.text)
    return kind, _unified(operands, kind)


def _logic(token: _Token, operands: tuple[Node, ...]) -> _Typed:
    for operand in operands:
        _want(operand, (FeatureType.BOOL,), token.text)
    return FeatureType.BOOL, operands


def _compared(token: _Token, operands: tuple[Node, ...]) -> _Typed:
    _common_type(operands)
    if token.text not in ("==", "!="):
        for operand in operands:
            _want(operand, (*_NUMBERS, FeatureType.STRING), token.text)
    return FeatureType.BOOL, operands


def _condition(token: _Token, operands: tuple[Node, ...]) -> _Typed:
    _want(operands[0], (FeatureType.BOOL,), token.text)
    kind = _common_type(operands[1:])
    return kind, (operands[0], *_unified(operands[1:], kind))


def _first_present(token: _Token, operands: tuple[Node, ...]) -> _Typed:
    del token
    kind = _common_type(operands)
    return kind, _unified(operands, kind)


_ANY_NUMBER: Final = 100
_RULES: Final[Mapping[str, tuple[Callable[[_Token, tuple[Node, ...]], _Typed], int, int]]] = {
    **dict.fromkeys(("+", "-", "*", "%"), (_arithmetic, 2, 2)),
    "/": (_to_double, 2, 2),
    "negate": (_arithmetic, 1, 1),
    **dict.fromkeys(_COMPARISONS, (_compared, 2, 2)),
    **dict.fromkeys(("and", "or"), (_logic, 2, 2)),
    "not": (_logic, 1, 1),
    "if": (_condition, 3, 3),
    "coalesce": (_first_present, 1, _ANY_NUMBER),
    "abs": (_arithmetic, 1, 1),
    **dict.fromkeys(("min", "max"), (_extreme, 1, _ANY_NUMBER)),
    **dict.fromkeys(("log", "exp"), (_to_double, 1, 1)),
    **dict.fromkeys(("floor", "ceil"), (_to_whole, 1, 1)),
}
FUNCTIONS: Final = ("if", "coalesce", "abs", "min", "max", "log", "exp", "floor", "ceil")


def _want(operand: Node, types: tuple[FeatureType, ...], where: str) -> None:
    if operand.type is not None and operand.type not in types:
        names = " or ".join(kind.value for kind in types)
        raise ExpressionError(operand.position, f"{names} for {where!r}", _type_name(operand.type))


def _numeric(operands: tuple[Node, ...], where: str) -> FeatureType:
    for operand in operands:
        _want(operand, _NUMBERS, where)
    whole = all(operand.type is FeatureType.INT64 for operand in operands)
    return FeatureType.INT64 if whole else FeatureType.DOUBLE


def _common_type(operands: tuple[Node, ...]) -> FeatureType | None:
    """Return the type that all of them can have; null goes with any."""
    common: FeatureType | None = None
    for operand in operands:
        if common is None or operand.type is None or operand.type is common:
            common = common or operand.type
        elif common in _NUMBERS and operand.type in _NUMBERS:
            common = FeatureType.DOUBLE
        else:
            raise ExpressionError(operand.position, f"{common.value}, as before it", _type_name(operand.type))
    return common


def _unified(operands: tuple[Node, ...], kind: FeatureType | None) -> tuple[Node, ...]:
    return tuple(map(_as_double, operands)) if kind is FeatureType.DOUBLE else operands


def _as_double(node: Node) -> Node:
    if node.type is not FeatureType.INT64:
        return node
    return Node("double", FeatureType.DOUBLE, node.position, (node,), depth=node.depth)


def _type_name(kind: FeatureType | None) -> str:
    return "null" if kind is None else kind.value

"""On-demand expressions: what can be written, what is refused and where, and what comes out."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.features.domain.definitions import EventField, Feature, FeatureType, FeatureView, OnDemandSource
from services.features.domain.expression import MAX_EXPRESSION_DEPTH, MAX_EXPRESSION_NESTING, ExpressionError
from services.features.domain.on_demand import (
    BadRequestValues,
    CompiledExpression,
    IntegerOverflow,
    OnDemandPlan,
    check_expressions,
)

D, N, S, B = FeatureType.DOUBLE, FeatureType.INT64, FeatureType.STRING, FeatureType.BOOL
INPUTS = {"x": D, "y": D, "n": N, "m": N, "s": S, "b": B}
ROW: Mapping[str, Any] = {"x": 2.5, "y": -4.0, "n": 7, "m": -2, "s": "abc", "b": True}


def value(text: str, kind: FeatureType = D, **changes: Any) -> Any:
    row = {**ROW, **changes}
    return CompiledExpression(text, INPUTS, kind).evaluate({name: [row[name]] for name in row}, 1)[0]


@pytest.mark.parametrize(
    ("text", "kind", "want"),
    [
        ("1 + 2 * 3 - 4 / 2", D, 5.0),
        ("-n % 4 + (n - m) * 2", N, 19),
        ("n / m", D, -3.5),
        ("abs(m) + min(n, 3, m) + max(1, n)", N, 7),
        ("floor(x) + ceil(x) + floor(y)", N, 1),
        ("log(exp(x))", D, 2.5),
        ("if(s == 'abc' and not (n < 3) or b == false, x, y)", D, 2.5),
        ("if(x > 2, 1, 0.5)", D, 1.0),
        ("coalesce(null, if(null, 1, null), n)", N, 7),
        ("n", D, 7.0),
        ("'it is' != \"it was\"", B, True),
        ("not not b == true", B, True),
        ("- - 3 - -1.5e0", D, 4.5),
        ("x / 0", D, None),
        ("n % (m + 2)", N, None),
        ("log(0) ", D, None),
        ("exp(1000)", D, None),
        ("1e308 * 10 / 10", D, None),
        ("x + null", D, None),
        ("null == null", B, None),
        ("b and x / 0 > 1", B, None),
        ("not b and x / 0 > 1", B, False),
        ("x / 0 > 1 or b", B, True),
    ],
)
def test_an_expression_has_its_value(text: str, kind: FeatureType, want: Any) -> None:
    got = value(text, kind)
    assert got == want
    assert type(got) is type(want)


@pytest.mark.parametrize(
    ("text", "position", "part"),
    [
        ("x.__class__", 2, "'.'"),
        ("__import__('os')", 1, "'__import__'"),
        ("open(s)", 1, "a function (if, "),
        ("[z for z in s]", 1, "'['"),
        ("9**9**9", 3, "'*'"),
        ("lambda: 1", 7, "':'"),
        ("x := 1", 3, "':'"),
        ("x(1)", 1, "a function"),
        ("f'{x}'", 1, "an input (b, m, n, s, x, y)"),
        ("'a\\x00b'", 1, "a value"),
        ("x; y", 2, "';'"),
        ("x y", 3, "an operator or the end"),
        ("(x", 3, "want ')', got end of expression"),
        ("", 1, "want a value, got end of expression"),
        ("1 < x < 2", 7, "'and' between"),
        ("x + s", 5, "want DOUBLE or INT64 for '+', got STRING"),
        ("b + 1", 1, "got BOOL"),
        ("x and b", 1, "want BOOL for 'and', got DOUBLE"),
        ("b < b", 1, "want DOUBLE or INT64 or STRING for '<', got BOOL"),
        ("s == 1", 6, "want STRING, as before it, got INT64"),
        ("if(x, 1, 2)", 4, "want BOOL for 'if'"),
        ("if(b, 1)", 1, "want 3 arguments of if, got 2"),
        ("if(b, 1, s)", 10, "want INT64"),
        ("s", 1, "want an expression of type DOUBLE, got STRING"),
        ("null", 1, "got null"),
        ("9223372036854775808", 1, "a whole number up to"),
        ("9" * 1_900, 1, "a whole number up to"),
        ("1e999", 1, "fits into DOUBLE"),
        ("(" * 1_000, MAX_EXPRESSION_NESTING + 1, "levels of nesting"),
        ("-" * 1_000 + "x", MAX_EXPRESSION_NESTING + 1, "levels of nesting"),
        ("not " * 400 + "b", 4 * MAX_EXPRESSION_NESTING + 1, "levels of nesting"),
        ("coalesce(" + "x," * 900 + "x)", 1, "levels of operations"),
        ("x+" * 900 + "x", 2 * MAX_EXPRESSION_DEPTH, "levels of operations"),
        ("x" * 2_001, 2_001, "at most 2000 characters"),
        ("\u0661", 1, "got '\\u0661'"),
    ],
)
def test_what_is_not_the_language_is_refused_with_its_position(text: str, position: int, part: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        CompiledExpression(text, INPUTS, D)
    assert part in str(caught.value)
    assert caught.value.position == position


def test_the_deepest_expression_allowed_runs() -> None:
    depth = MAX_EXPRESSION_NESTING - 1
    assert value("(" * depth + "n" + ")" * depth, N) == 7
    assert value("-" * depth + "x") == -2.5
    assert value("if(n > 1, abs(" * 24 + "x" + "), 0)" * 24) == 2.5
    assert value("coalesce(" + "x / 0, " * 97 + "y)") == -4.0
    assert value("n" + " + n" * (MAX_EXPRESSION_DEPTH - 1), N) == 700


def test_a_whole_number_beyond_int64_is_refused_with_row_and_position() -> None:
    expression = CompiledExpression("n * m", INPUTS, N)
    with pytest.raises(IntegerOverflow) as caught:
        expression.evaluate({"n": [1, 2**62], "m": [1, 2]}, 2)
    assert (caught.value.row_index, caught.value.position) == (1, 3)
    with pytest.raises(IntegerOverflow):
        value("floor(1e300)", N)
    with pytest.raises(IntegerOverflow):
        value("-n", N, n=-(2**63))


def test_request_values_are_checked_all_at_once_and_others_may_be_there() -> None:
    plan = OnDemandPlan(INPUTS, {"f": "x + n", "g": "if(b, 1, 0)"}, {"f": D, "g": N})
    assert plan.evaluate(["f"], [{"x": 1, "n": 2.0, "other": "text"}, {"x": None, "n": 1}]) == [[3.0, None]]
    with pytest.raises(BadRequestValues) as caught:
        plan.evaluate(
            ["f", "g"], [{"x": "1", "n": 2, "b": 1}, {"n": 2.5, "b": True, "x": math.nan}, {"x": 1.0, "b": True}]
        )
    assert caught.value.values == (
        (0, "b", "want true or false or null, got the number 1"),
        (0, "x", 'want a finite number or null, got the text "1"'),
        (1, "n", "want a whole number from -2^63 to 2^63 - 1 or null, got the number 2.5"),
        (1, "x", "want a finite number or null, got the number nan"),
        (2, "n", "want a whole number from -2^63 to 2^63 - 1 or null, got nothing"),
    )


def test_all_that_is_wrong_with_a_view_is_found() -> None:
    inputs = (EventField("n", N), EventField("and", D), EventField("untyped", None))
    features = (Feature(name="f", type=D), Feature(name="g", type=N, is_list=True), Feature(name="h", type=D))
    source = OnDemandSource(inputs, {"f": "n +", "g": "n", "z": "n"})
    view = FeatureView(id="v", entities=(), features=features, source=source)
    assert {(wrong.field, wrong.description) for wrong in check_expressions(view)} == {
        ("on_demand_source.inputs", 'want a name that is no word of expressions, got "and"'),
        ('features["g"].is_list', "want false for an on-demand feature, got true"),
        ("on_demand_source.expressions", 'want one for "h", got none'),
        ('on_demand_source.expressions["f"]', "character 4: want a value, got end of expression"),
        ('on_demand_source.expressions["z"]', 'want the name of a feature with a type, got "z"'),
    }


Tree = tuple[Any, ...]


def numbers(depth: int) -> st.SearchStrategy[Tree]:
    leaf = st.one_of(
        st.sampled_from([("in", "x"), ("in", "y"), ("in", "n"), ("in", "m")]),
        st.integers(0, 2**63 - 1).map(lambda v: ("int", v)),
        st.floats(0, 1e308).map(lambda v: ("float", v)),
    )
    if depth == 0:
        return leaf
    inner = numbers(depth - 1)
    return st.one_of(
        leaf,
        st.tuples(st.sampled_from("+-*/%"), inner, inner),
        st.tuples(st.sampled_from(["neg", "abs", "log", "exp", "floor", "ceil"]), inner),
        st.tuples(st.sampled_from(["min", "max", "coalesce"]), inner, inner),
        st.tuples(st.just("if"), truths(depth - 1), inner, inner),
    )


def truths(depth: int) -> st.SearchStrategy[Tree]:
    compared = st.tuples(
        st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers(depth - 1 if depth else 0), numbers(0)
    )
    if depth == 0:
        return st.one_of(compared, st.just(("in", "b")))
    inner = truths(depth - 1)
    return st.one_of(
        compared, st.tuples(st.sampled_from(["and", "or"]), inner, inner), st.tuples(st.just("not"), inner)
    )


def written(tree: Tree) -> str:
    head, *rest = tree
    if head in ("in", "int", "float"):
        return repr(rest[0]) if head != "in" else str(rest[0])
    parts = [written(part) for part in rest]
    if head in ("neg", "not"):
        return f"({'-' if head == 'neg' else 'not '}{parts[0]})"
    if head in ("abs", "log", "exp", "floor", "ceil", "min", "max", "coalesce", "if"):
        return f"{head}({', '.join(parts)})"
    return f"({parts[0]} {head} {parts[1]})"


def is_whole(tree: Tree) -> bool:
    head, *rest = tree
    if head in ("floor", "ceil", "int"):
        return True
    if head in ("float", "/", "log", "exp"):
        return False
    if head == "in":
        return INPUTS[rest[0]] is N
    return all(is_whole(part) for part in (rest[1:] if head == "if" else rest))


class Overflow(Exception):
    pass


def oracle(tree: Tree, row: Mapping[str, Any]) -> Any:  # noqa: PLR0911  one case, one return
    """The value by walking the tree, written without a look at the compiler."""
    head, *rest = tree
    if head in ("in", "int", "float"):
        return row[rest[0]] if head == "in" else rest[0]
    if head == "if":
        result = oracle(rest[1], row) if oracle(rest[0], row) is True else oracle(rest[2], row)
        return float(result) if result is not None and not is_whole(tree) else result
    if head == "coalesce":
        result = oracle(rest[0], row)
        result = oracle(rest[1], row) if result is None else result
        return float(result) if result is not None and not is_whole(tree) else result
    if head in ("and", "or"):
        decides = head == "or"
        first = oracle(rest[0], row)
        if first is decides:
            return decides
        sides = [first, oracle(rest[1], row)]
        return decides if decides in sides else None if None in sides else not decides
    operands = []
    for part in rest:
        operands.append(oracle(part, row))
        if operands[-1] is None:
            return None
    return limited(strict(head, operands, tree), tree)


def strict(head: str, values: list[Any], tree: Tree) -> Any:
    a, b = values[0], values[-1]
    if head in ("/", "%"):
        return None if b == 0 else a / b if head == "/" else a % b
    if head in ("min", "max"):
        values = values if is_whole(tree) else [float(v) for v in values]
        return {"min": min, "max": max}[head](values)
    if head == "log":
        return math.log(a) if a > 0 else None
    try:
        operations: Mapping[str, Callable[[], Any]] = {
            "+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "neg": lambda: -a, "abs": lambda: abs(a),
            "exp": lambda: math.exp(a), "floor": lambda: math.floor(a), "ceil": lambda: math.ceil(a),
            "<": lambda: a < b, "<=": lambda: a <= b, ">": lambda: a > b, ">=": lambda: a >= b,
            "==": lambda: a == b, "!=": lambda: a != b, "not": lambda: not a,
        }  # fmt: skip
        return operations[head]()
    except OverflowError:
        return None


def limited(result: Any, tree: Tree) -> Any:
    if isinstance(result, float) and not math.isfinite(result):
        return None
    if type(result) is int and is_whole(tree) and not -(2**63) <= result < 2**63:
        raise Overflow
    return result


REAL = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -3.5])
WHOLE = st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3)


@settings(max_examples=400, deadline=None)
@given(
    numbers(4), st.fixed_dictionaries({"x": REAL, "y": REAL, "n": WHOLE, "m": WHOLE, "b": st.none() | st.booleans()})
)
def test_compiled_expressions_agree_with_a_walk_of_the_tree(tree: Tree, row: Mapping[str, Any]) -> None:
    expression = CompiledExpression(written(tree), INPUTS, D)
    columns = {name: [cell] for name, cell in row.items()}
    try:
        want = oracle(tree, row)
    except Overflow:
        with pytest.raises(IntegerOverflow):
            expression.evaluate(columns, 1)
        return
    assert expression.evaluate(columns, 1) == [want if want is None else float(want)]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="xynmsb01.'\"()<>=!+-*/%, \n_[]{}:;@\\é", max_size=40) | st.text(max_size=40))
def test_any_text_is_an_expression_or_refused_with_a_position_in_it(text: str) -> None:
    try:
        CompiledExpression(text, INPUTS, D)
    except ExpressionError as error:
        assert 1 <= error.position <= len(text) + 1  # noqa: PT017  an error is allowed, not wanted

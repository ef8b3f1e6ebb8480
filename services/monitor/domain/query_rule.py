"""What a query may be: one SELECT that reads the view `predictions`, its own sub-queries, and nothing else.

It is judged by the syntax tree that the database's own parser gives, as JSON: never by the text.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

VIEW: Final = "predictions"
LABEL_COLUMNS: Final = frozenset({"label", "label_name", "label_delay_s", "rewards"})
_TABLE_FUNCTIONS: Final = frozenset({"unnest", "range", "generate_series"})
_QUERIES: Final = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
# They tell of this process, not of predictions.
_REFUSED_FUNCTIONS: Final = frozenset({"current_setting", "getenv", "getvariable", "query", "query_table"})


class Refused(Exception):
    """The query may not run; the text says "want ..., got ..."."""


def check_query(tree: Mapping[str, Any], catalog: Collection[str]) -> bool:
    """Return whether the query needs labels; raises Refused.

    `tree` is what `json_serialize_sql` gives, `catalog` the names of all tables and views that the database has by
    itself: no sub-query may take one of them.
    """
    if tree.get("error"):
        raise Refused(f"want one SELECT that DuckDB understands, got: {tree.get('error_message', '')}")
    statements = tree.get("statements", [])
    if len(statements) != 1:
        raise Refused(f"want one statement, got {len(statements)}")
    nodes = list(_nodes(statements[0]))
    own = {name for node in nodes for name in _names_of_subqueries(node)}
    taken = own & {name.lower() for name in catalog}
    if taken:
        raise Refused(f"want a name for the sub-query that is no table's, got {min(taken)}")
    for node in nodes:
        _check_node(node, own)
    # A row as a whole is named by its table or alias.
    rows = {VIEW, *(str(node.get("alias", "")).lower() for node in nodes if node.get("type") == "BASE_TABLE")}
    return any(_needs_labels(node, LABEL_COLUMNS | rows) for node in nodes)


def _check_node(node: Mapping[str, Any], own: Collection[str]) -> None:
    match str(node.get("type", "")):
        case "BASE_TABLE":
            _check_table(node, own)
        case "TABLE_FUNCTION":
            function = str((node.get("function") or {}).get("function_name", ""))
            if function.lower() not in _TABLE_FUNCTIONS:
                raise Refused(f"want the view {VIEW} and nothing else to read from, got the function {function}")
        case "SHOW_REF":
            if node.get("table_name"):
                raise Refused("want a SELECT, got SHOW")
        case kind if kind.endswith("_NODE") and kind not in _QUERIES:
            raise Refused(f"want a SELECT, got {kind.removesuffix('_NODE')}")
        case "FUNCTION" if str(node.get("function_name", "")).lower() in _REFUSED_FUNCTIONS:
            raise Refused(f"want functions of values, got {node['function_name']}")
        case _:
            return


def _check_table(node: Mapping[str, Any], own: Collection[str]) -> None:
    name = str(node.get("table_name", ""))
    qualified = node.get("schema_name") or node.get("catalog_name")
    if qualified or name.lower() not in {VIEW, *own}:
        raise Refused(f"want the view {VIEW} and nothing else to read from, got {name}")


def _names_of_subqueries(node: Mapping[str, Any]) -> Iterator[str]:
    for entry in (node.get("cte_map") or {}).get("map", ()):
        yield str(entry["key"]).lower()
    if node.get("type") == "RECURSIVE_CTE_NODE":
        yield str(node.get("cte_name", "")).lower()


def _needs_labels(node: Mapping[str, Any], names: Collection[str]) -> bool:
    used = [*node.get("column_names", ()), *node.get("using_columns", ())]
    # A star may stand for every column; that of count(*) is a function of its own.
    return node.get("type") == "STAR" or any(str(name).lower() in names for name in used)


def _nodes(value: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every object of a tree."""
    stack = [value]
    while stack:
        found = stack.pop()
        if isinstance(found, dict):
            yield found
            stack.extend(found.values())
        elif isinstance(found, list):
            stack.extend(found)

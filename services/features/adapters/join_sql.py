"""The SQL of point-in-time joins, in DuckDB's dialect.

Times are BIGINT microseconds. A row of history can be seen from `valid_from` on, the later of event and known-at time. Of
those that can be seen the greatest (event, known) counts, so a row of which a greater one could be seen earlier never
counts: what remains is a staircase, `steps`, in which the last step before a row's time is the answer, an ASOF JOIN. Of
values equal in both times the greater one counts, null being the least, as in the online store.
"""

from collections.abc import Container, Sequence
from typing import Final

from services.features.domain.definitions import FeatureType
from services.features.domain.point_in_time import PlannedFeature, PlannedKey

_TYPES: Final = {
    FeatureType.DOUBLE: "DOUBLE",
    FeatureType.INT64: "BIGINT",
    FeatureType.STRING: "VARCHAR",
    FeatureType.BOOL: "BOOLEAN",
}
# Room for a known-at time beside the event time in one 128-bit number.
_KNOWN_AT_ROOM: Final = 2**63


def quote(name: str) -> str:
    """Return a name as SQL takes it whatever stands in it."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def type_of(kind: FeatureType, *, is_list: bool = False) -> str:
    """Return the SQL type of a value."""
    return _TYPES[kind] + ("[]" if is_list else "")


def key_column(entity: str) -> str:
    """Return the column of an entity's key in tables of history."""
    return f"entity__{entity}"


def value_column(name: str) -> str:
    """Return the column of a feature or field in our tables; no other column begins like that."""
    return f"value__{name}"


def key_columns(keys: Sequence[PlannedKey]) -> str:
    """Return the columns of the keys, the same in `rows` and `history`, separated by commas."""
    return ", ".join(quote(key_column(key.entity)) for key in keys)


def history_columns(keys: Sequence[PlannedKey], values: Sequence[tuple[str, str]], present: Container[str]) -> str:
    """Return what is read of a history file: keys, values (name and SQL type), both times, event id and `absent`.

    A value without a column in the file, because the view got it later, counts as absent in every row.
    """
    columns = [
        f"CAST({name} AS {_TYPES[key.type]}) AS {name}" for key in keys for name in [quote(key_column(key.entity))]
    ]
    columns += [
        f"CAST({quote(name) if name in present else 'NULL'} AS {kind}) AS {quote(value_column(name))}"
        for name, kind in values
    ]
    missing = ", ".join(text(name) for name, _ in values if name not in present)
    absent = f"list_concat(absent, [{missing}])" if missing else "absent"
    times = "epoch_us(event_time) AS event_us, epoch_us(known_at) AS known_us"
    return ", ".join([*columns, times, "event_id", f"{absent} AS absent"])


def history_types(keys: Sequence[PlannedKey], values: Sequence[tuple[str, str]]) -> str:
    """Return the column definitions of the table `history`."""
    columns = [f"{quote(key_column(key.entity))} {_TYPES[key.type]}" for key in keys]
    columns += [f"{quote(value_column(name))} {kind}" for name, kind in values]
    return ", ".join([*columns, "event_us BIGINT", "known_us BIGINT", "event_id VARCHAR", "absent VARCHAR[]"])


def only_needed(keys: Sequence[PlannedKey], query: str) -> str:
    """Return the rows of a query on history that some row may see."""
    mine = key_columns(keys)
    return f"""
        SELECT * FROM ({query}) SEMI JOIN (SELECT DISTINCT {mine} FROM rows) USING ({mine})
        WHERE event_us <= (SELECT max(t) FROM rows)"""


def is_set(feature: PlannedFeature) -> str:
    """Return the condition that a row of history sets a feature."""
    condition = f"NOT coalesce(list_contains(absent, {text(feature.name)}), false)"
    return condition if feature.nullable else f"{condition} AND {quote(value_column(feature.name))} IS NOT NULL"


def steps(keys: Sequence[PlannedKey], features: Sequence[PlannedFeature], where: str, *, both_clocks: bool) -> str:
    """Return the query for the staircase of `features`, which are set in the same rows of `history`."""
    mine, names = key_columns(keys), [quote(value_column(feature.name)) for feature in features]
    values, greatest = ", ".join(names), ", ".join(f"max({name}) AS {name}" for name in names)
    valid_from = "greatest(event_us, known_us)" if both_clocks else "event_us"
    return f"""
        WITH seen AS MATERIALIZED (
          SELECT {mine}, valid_from, event_us, {values}, rivals FROM (
            SELECT *,
              max(clock) OVER (so_far RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS best,
              count(*) OVER (so_far RANGE BETWEEN CURRENT ROW AND CURRENT ROW) AS rivals
            FROM (
              SELECT {mine}, {values}, event_us, {valid_from} AS valid_from,
                event_us::HUGEINT * {_KNOWN_AT_ROOM} + known_us AS clock
              FROM history WHERE {where}
            )
            WINDOW so_far AS (PARTITION BY {mine} ORDER BY valid_from)
          )
          WHERE clock = best
        )
        SELECT {mine}, valid_from, event_us, {values} FROM seen WHERE rivals = 1
        UNION ALL
        SELECT {mine}, valid_from, any_value(event_us), {greatest} FROM seen WHERE rivals > 1 GROUP BY {mine}, valid_from"""


def as_of(keys: Sequence[PlannedKey], features: Sequence[PlannedFeature]) -> str:
    """Return the query for the values of each row, from `steps`."""
    values = ", ".join(f"{_young_enough(feature)} AS {quote(feature.output)}" for feature in features)
    matches = " AND ".join(f"r.{name} = s.{name}" for key in keys for name in [quote(key_column(key.entity))])
    return f"""
        SELECT r.row, s.event_us, {values}
        FROM rows r ASOF LEFT JOIN steps s ON {matches} AND r.t >= s.valid_from"""


def _young_enough(feature: PlannedFeature) -> str:
    value = f"s.{quote(value_column(feature.name))}"
    if feature.max_age_us is None:
        return value
    return f"CASE WHEN r.t - s.event_us <= {feature.max_age_us} THEN {value} END"


def events(keys: Sequence[PlannedKey], allowed_lateness_us: int) -> str:
    """Return the query for the events that count: in time, and of those with one id the one known first.

    Ids are told apart by 128 bits of a digest; only what comes more than once is sorted.
    """
    mine = key_columns(keys)
    return f"""
        WITH in_time AS MATERIALIZED (
          SELECT *, md5_number(event_id) AS id FROM history WHERE known_us - event_us <= {allowed_lateness_us}
        ),
        repeated AS MATERIALIZED (SELECT {mine}, id FROM in_time GROUP BY {mine}, id HAVING count(*) > 1)
        SELECT * FROM in_time ANTI JOIN repeated USING ({mine}, id)
        UNION ALL
        SELECT * FROM (
          SELECT DISTINCT ON ({mine}, id) * FROM in_time SEMI JOIN repeated USING ({mine}, id)
          ORDER BY {mine}, id, known_us, event_us
        )"""


def staged(keys: Sequence[PlannedKey], features: Sequence[PlannedFeature], *, both_clocks: bool) -> str:
    """Return the query for the rows of `source`, each once, by event time, and whether `history` has it already."""
    columns = [key_column(key.entity) for key in keys] + [value_column(feature.name) for feature in features]
    same = [f"h.{quote(name)} IS NOT DISTINCT FROM s.{quote(name)}" for name in columns]
    same += ["h.event_us = s.event_us", *(["h.known_us = s.known_us"] if both_clocks else [])]
    return f"""
        SELECT DISTINCT * EXCLUDE (event_id, absent),
          EXISTS (SELECT 1 FROM history h WHERE {" AND ".join(same)}) AS in_history
        FROM source s ORDER BY event_us, known_us, {key_columns(keys)}"""

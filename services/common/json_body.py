"""Strict JSON: what is malformed, unknown, doubled or of the wrong type is refused with its place, not dropped."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, TypeVar

import msgspec

from services.common.errors import InvalidArgument, Violation, echo
from services.common.wording import describe, did_you_mean

_ValueT = TypeVar("_ValueT")
_VIOLATION_LIMIT: Final = 50
_SUGGESTION_LIMIT: Final = 8
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TYPE_NAMES: Final[Mapping[type, str]] = {
    str: "a text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    int: "a whole number",
}


class InvalidJson(InvalidArgument):
    """The body is not the JSON that the contract wants; the areas' enums of reasons have INVALID_JSON."""

    def __init__(self, message: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message, reason="INVALID_JSON", violations=violations)


def decode_object(body: bytes) -> dict[str, Any]:
    """Return a body's JSON object; raises InvalidJson when it is none, or names a field twice."""
    try:
        decoded = _decode(body)
        # Every key has a colon, so equal counts prove that no key was lost to a second one of its name. Colons inside
        # of strings only make the count larger, and then the slow way tells.
        if body.count(b":") != _count_keys(decoded):
            json.loads(body, object_pairs_hook=_unique)
    except RecursionError:
        raise InvalidJson("the JSON is nested too deeply") from None
    if not isinstance(decoded, dict):
        raise InvalidJson(f"want a JSON object, got {describe(decoded)}")
    return decoded


class Fields:
    """Reads the fields of one object and collects what is wrong; `path` names the object, empty for the body."""

    def __init__(self, found: Mapping[str, Any], known: tuple[str, ...], path: str = "") -> None:
        self._found = found
        self._prefix = f"{path}." if path else ""
        self.violations: list[Violation] = []
        unknown = [name for name in found if name not in known]
        for index, name in enumerate(unknown[:_VIOLATION_LIMIT]):
            hint = did_you_mean(name, known) if index < _SUGGESTION_LIMIT else ""
            self.add(name, f"want a field of the contract, got an unknown one{hint}")

    def text(self, name: str) -> str:
        """Return a text; absent and null are empty."""
        return self._typed(name, str, "")

    def flag(self, name: str) -> bool:
        """Return a truth value; absent and null are false."""
        return self._typed(name, bool, False)

    def members(self, name: str) -> dict[str, Any]:
        """Return an object; absent and null are empty."""
        return self._typed(name, dict, {})

    def items(self, name: str) -> list[Any]:
        """Return a list; absent and null are empty."""
        return self._typed(name, list, [])

    def whole(self, name: str) -> int:
        """Return a whole number; absent and null are 0."""
        return self._typed(name, int, 0)

    def texts(self, name: str) -> dict[str, str]:
        """Return an object whose values are texts."""
        found = self.members(name)
        for key, value in found.items():
            if not isinstance(value, str) and len(self.violations) < _VIOLATION_LIMIT:
                self.add(f"{name}.{key}", f"want a text, got {describe(value)}")
        return found

    def moment_us(self, name: str) -> int | None:
        """Return an RFC 3339 time in microseconds since 1970-01-01 UTC; absent and null are None."""
        value = self._found.get(name)
        if value is None:
            return None
        try:
            moment: datetime = msgspec.convert(value, _Moment)
        except msgspec.ValidationError:
            self.add(name, f'want a time with its zone, such as "2026-03-01T08:30:00Z", got {describe(value)}')
            return None
        return (moment - _EPOCH) // timedelta(microseconds=1)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._found.get(name) is not None

    def add(self, name: str, description: str) -> None:
        """Note what is wrong with a field."""
        self.violations.append(Violation(f"{self._prefix}{name}", description))

    def check(self) -> None:
        """Raise InvalidJson if anything is wrong."""
        raise_violations(self.violations)

    def _typed(self, name: str, kind: type[_ValueT], default: _ValueT) -> _ValueT:
        value = self._found.get(name)
        if value is None:
            return default
        # A bool is an int to Python and not to a caller.
        if isinstance(value, kind) and isinstance(value, bool) is (kind is bool):
            return value
        self.add(name, f"want {_TYPE_NAMES[kind]}, got {describe(value)}")
        return default


def raise_violations(violations: list[Violation]) -> None:
    """Raise InvalidJson that lists the violations, if there are any."""
    if violations:
        shown = "; ".join(f"{found.field}: {found.description}" for found in violations[:3])
        raise InvalidJson(f"the JSON does not fit: {shown}", violations)


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except UnicodeDecodeError:
        raise InvalidJson("the JSON is malformed: want UTF-8 text, got other bytes") from None
    except msgspec.ValidationError:
        raise InvalidJson("the JSON is malformed: want numbers that fit 64 bits, got a larger one") from None
    except msgspec.DecodeError as error:
        text = "it ends too early" if "truncated" in str(error) else str(error).removeprefix("JSON is malformed: ")
        raise InvalidJson(f"the JSON is malformed: {text}") from None


def _count_keys(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(_count_keys(child) for child in value.values() if isinstance(child, dict | list))
    if isinstance(value, list):
        return sum(_count_keys(child) for child in value if isinstance(child, dict | list))
    return 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise InvalidJson(f"want each field once, got {echo(name)} twice", [Violation(name, "want it once")])
        seen[name] = value
    return seen

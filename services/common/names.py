"""The one parser of resource names and ids.

A name is a path such as `models/fraud/versions/3`. An id has 1 to 128 of the characters A-Z a-z 0-9 . _ - (so nothing
in it needs escaping anywhere), begins with a letter or digit and holds no "..".
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from services.common.errors import INVALID_NAME, InvalidArgument, Violation, echo

ID_RULE: Final = '1 to 128 characters A-Z a-z 0-9 . _ - that begin with a letter or digit and hold no ".."'
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)


@dataclass(frozen=True)
class NameFormat:
    """The form of one kind of resource name; `pattern` is written as in the contract: `models/{model}`."""

    pattern: str

    def parse(self, name: str, field: str = "name") -> tuple[str, ...]:
        """Return the ids of `name`, in order; raises InvalidArgument that shows `field`, the form and what came."""
        found = self._ids(name)
        if found is None:
            raise _refusal(self._violation(name, field))
        return found

    def violation(self, name: str, field: str = "name") -> Violation | None:
        """Return what is wrong with `name`, or None; for converters that report all fields at once."""
        return None if self._ids(name) is not None else self._violation(name, field)

    def format(self, *ids: str) -> str:
        """Return the name made of `ids`; raises InvalidArgument for an id that breaks the rule."""
        if len(ids) != self.pattern.count("{"):
            raise TypeError(f"{self.pattern} takes {self.pattern.count('{')} ids, got {len(ids)}")
        for found in ids:
            parse_id(found)
        return self._template.format(*ids)

    @cached_property
    def _template(self) -> str:
        return re.sub(r"\{[^}]*\}", "{}", self.pattern)

    @cached_property
    def _segments(self) -> tuple[str, ...]:
        return tuple(self._template.split("/"))

    def _ids(self, name: str) -> tuple[str, ...] | None:
        parts = name.split("/", len(self._segments))
        if len(parts) != len(self._segments):
            return None
        pairs = list(zip(self._segments, parts, strict=True))
        if any(want not in ("{}", part) for want, part in pairs):
            return None
        ids = tuple(part for want, part in pairs if want == "{}")
        return ids if all(map(is_id, ids)) else None

    def _violation(self, name: str, field: str) -> Violation:
        return Violation(field, f"want {self.pattern}, each id being {ID_RULE}; got {echo(name)}")


MODEL: Final = NameFormat("models/{model}")
VERSION: Final = NameFormat("models/{model}/versions/{version}")
ROUTE: Final = NameFormat("models/{model}/routes/{environment}")
DEPLOYMENT: Final = NameFormat("deployments/{deployment}")
ENVIRONMENT: Final = NameFormat("environments/{environment}")
ARTIFACT: Final = NameFormat("artifacts/{digest}")
ENTITY: Final = NameFormat("entities/{entity}")
FEATURE_VIEW: Final = NameFormat("featureViews/{view}")


def is_id(value: str) -> bool:
    """Return whether `value` follows the rule of ids."""
    return _ID.fullmatch(value) is not None and ".." not in value


def id_violation(value: str, field: str) -> Violation | None:
    """Return what is wrong with an id, or None."""
    return None if is_id(value) else Violation(field, f"want {ID_RULE}; got {echo(value)}")


def parse_id(value: str, field: str = "id") -> str:
    """Return `value` if it is an id; raises InvalidArgument that shows `field`, the rule and what came."""
    wrong = id_violation(value, field)
    if wrong is not None:
        raise _refusal(wrong)
    return value


def _refusal(wrong: Violation) -> InvalidArgument:
    return InvalidArgument(
        f"{wrong.field}: {wrong.description}", reason=INVALID_NAME, metadata={"field": wrong.field}, violations=[wrong]
    )

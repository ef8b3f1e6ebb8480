"""One row as it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field


# Made for each request, as are answers and events: frozen ones cost twice the time.
@dataclass(slots=True)
class Row:
    """What one row is predicted from: values by feature, keys by entity, and the time it is taken to be asked at.

    `as_of_us` is in microseconds since 1970-01-01 UTC; None means now.
    """

    features: Mapping[str, object]
    user_id: str = ""
    entities: Mapping[str, str] = field(default_factory=dict)
    as_of_us: int | None = None

"""The flight of the README, which exists in the data: JetBlue 2013-09-06, 17 h, New York to Los Angeles."""

from typing import Any

MODEL = "flight-delay"
FEATURES: dict[str, Any] = {
    "carrier": "B6",
    "origin": "JFK",
    "dest": "LAX",
    "sched_dep_hour": 17,
    "month": 9,
    "weekday": 5,
    "distance": 2475,
}
BODY: dict[str, Any] = {"model": MODEL, "features": FEATURES, "user_id": "u-42"}

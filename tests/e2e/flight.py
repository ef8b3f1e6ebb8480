"""The flight of the README: JetBlue from New York to Los Angeles on a Friday in September, from 17 to 18 h."""

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

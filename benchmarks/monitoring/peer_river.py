"""Runs in river's own environment: gives its annotated series, and where its own detectors fire.

python peer_river.py OUT        writes OUT/river.json
"""

import json
import math
import sys
from pathlib import Path

import river
from river import drift
from river.drift import datasets

SETS = ("AirlinePassengers", "Apple", "Bitcoin", "BrentSpotPrice", "Occupancy", "RunLog", "UKCoalEmploy")
# Their descriptions say that annotators saw only these rows, and annotations count them; the files have all rows.
THINNED = {"Apple": (0, 3), "BrentSpotPrice": (2000, 10)}


def main() -> None:
    found: dict[str, object] = {"version": river.__version__}
    for name in SETS:
        dataset = getattr(datasets, name)()
        columns: dict[str, list[float]] = {}
        since, step = THINNED.get(name, (0, 1))
        rows = [targets for moment, targets in dataset if not since or moment["day"].year >= since]
        for targets in rows[::step]:
            row = targets if isinstance(targets, dict) else {"value": targets}
            for column, value in row.items():
                columns.setdefault(column, []).append(float(value))
        found[name] = {"columns": columns, "annotations": dataset.annotations, "fires": fires(columns)}
    (Path(sys.argv[1]) / "river.json").write_text(json.dumps(found))


def fires(columns: dict[str, list[float]]) -> dict[str, list[int]]:
    """Return the rows at which a detector with its defaults fires in any column."""
    detectors = {"ADWIN": drift.ADWIN, "KSWIN": lambda: drift.KSWIN(seed=0), "PageHinkley": drift.PageHinkley}
    found = {}
    for name, build in detectors.items():
        rows = set()
        for values in columns.values():
            detector = build()
            for row, value in enumerate(values):
                if math.isnan(value):
                    continue
                detector.update(value)
                if detector.drift_detected:
                    rows.add(row)
        found[name] = sorted(rows)
    return found


if __name__ == "__main__":
    main()

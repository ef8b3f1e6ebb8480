"""What a replay answered, kept in the state folder: a second start replays nothing, and one that was cut short goes on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

from interlock_cli.demo.traffic import Answer

_NAME = "replay.json"


@dataclass(frozen=True, slots=True)
class Played:
    """How far a replay has come: answers by the position of the flight, by which versions, and by how much time was moved."""

    shift: timedelta
    version_ids: tuple[str, ...]
    flight_count: int
    answers: Mapping[int, Answer] = field(default_factory=dict)
    hour_count: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether every flight has been answered."""
        return len(self.answers) == self.flight_count


def keep_played(folder: Path, played: Played) -> None:
    """Keeps a replay as far as it has come."""
    content = {
        "shift_days": played.shift.days,
        "version_ids": played.version_ids,
        "flight_count": played.flight_count,
        "hour_count": played.hour_count,
        "answers": {position: asdict(answer) for position, answer in played.answers.items()},
    }
    unfinished = folder / f"{_NAME}.unfinished"
    unfinished.write_text(json.dumps(content), "utf-8")
    unfinished.replace(folder / _NAME)


def kept_played(folder: Path, version_ids: Sequence[str], flight_count: int) -> Played | None:
    """Gives the replay that an earlier start began with the same versions and as many flights, if there was one."""
    try:
        content = json.loads((folder / _NAME).read_text("utf-8"))
        answers = {int(position): Answer(**answer) for position, answer in content["answers"].items()}
        shift, versions = timedelta(days=content["shift_days"]), tuple(content["version_ids"])
        played = Played(shift, versions, content["flight_count"], answers, content["hour_count"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if played.version_ids != tuple(version_ids) or played.flight_count != flight_count:
        return None
    return played

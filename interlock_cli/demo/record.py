"""What a replay answered, kept in the state folder: a second start replays nothing."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from interlock_cli.demo.traffic import Answer

_NAME = "replay.json"


@dataclass(frozen=True, slots=True)
class Played:
    """The answers to the replayed flights in their order, by which versions, and by how much time was moved."""

    shift: timedelta
    version_ids: tuple[str, ...]
    answers: tuple[Answer, ...]


def keep_played(folder: Path, played: Played) -> Played:
    """Keeps a replay, whole or not at all, and gives it back."""
    content = {
        "shift_days": played.shift.days,
        "version_ids": played.version_ids,
        "answers": [asdict(answer) for answer in played.answers],
    }
    unfinished = folder / f"{_NAME}.unfinished"
    unfinished.write_text(json.dumps(content), "utf-8")
    unfinished.replace(folder / _NAME)
    return played


def kept_played(folder: Path, version_ids: Sequence[str], flight_count: int) -> Played | None:
    """Gives the replay of an earlier start with the same versions and as many flights, if there was one."""
    try:
        content = json.loads((folder / _NAME).read_text("utf-8"))
        answers = tuple(Answer(**answer) for answer in content["answers"])
        played = Played(timedelta(days=content["shift_days"]), tuple(content["version_ids"]), answers)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if played.version_ids != tuple(version_ids) or len(played.answers) != flight_count:
        return None
    return played

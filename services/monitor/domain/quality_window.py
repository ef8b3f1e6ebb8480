"""How good the predictions of one window were, as far as their labels have come."""

from collections.abc import Mapping
from typing import Final, Self

from services.monitor.domain.fairness import GroupCounts
from services.monitor.domain.numeric_sketch import SketchUnreadable
from services.monitor.domain.quality import ClassificationQuality, RegressionQuality
from services.monitor.domain.window import Groups, groups_from_json, groups_to_json, merge_groups, pack, unpack

Quality = ClassificationQuality | RegressionQuality
_MAGIC: Final = b"ILL1"
_KINDS: Final[Mapping[str, type[ClassificationQuality] | type[RegressionQuality]]] = {
    "c": ClassificationQuality,
    "r": RegressionQuality,
}


class QualityWindow:
    """Labelled predictions of one window, and of the groups in it."""

    __slots__ = ("groups", "quality")

    def __init__(self, quality: Quality) -> None:
        self.quality = quality
        self.groups: Groups = {}
        """By feature and value; only the cells of labelled predictions."""

    def merge(self, other: "QualityWindow") -> None:
        """Add what another has seen."""
        match self.quality, other.quality:
            case ClassificationQuality() as mine, ClassificationQuality() as theirs:
                mine.merge(theirs)
            case RegressionQuality() as own, RegressionQuality() as others:
                own.merge(others)
        merge_groups(self.groups, other.groups)

    def to_bytes(self) -> bytes:
        """Return an encoding that carries its version."""
        kind = "c" if isinstance(self.quality, ClassificationQuality) else "r"
        return pack(_MAGIC, {"kind": kind, "groups": groups_to_json(self.groups)}, [self.quality.to_bytes()])

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return what was encoded; raises SketchUnreadable."""
        head, rest = unpack(_MAGIC, data)
        try:
            window = cls(_KINDS[head["kind"]].from_bytes(bytes(rest)))
            window.groups = groups_from_json(head["groups"])
        except (KeyError, TypeError, ValueError) as error:
            raise SketchUnreadable(f"want quality, got {len(data)} bytes that are none: {error}") from error
        return window


def negated(counts: GroupCounts) -> GroupCounts:
    """Return counts that take out what `counts` put in: labels that were replaced."""
    return GroupCounts() - counts

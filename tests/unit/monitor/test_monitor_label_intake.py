"""Labels on their way into windows."""

from types import SimpleNamespace
from typing import Any, cast

from services.monitor.domain.columns import LabelBatch
from services.monitor.domain.label_intake import LABELS, LabelIntake


class Store:
    """Takes what is added."""

    def __init__(self) -> None:
        self.added: list[tuple[Any, Any]] = []

    async def add_labelled(self, windows: Any, position: Any) -> None:
        self.added.append((windows, position))


class NoVersions:
    """Is not to be asked."""

    async def find(self, model: str, version: str) -> Any:
        raise AssertionError(f"nobody answered for {model!r} {version!r}")


async def test_a_label_of_a_fixed_prediction_is_no_version_s_and_does_not_hold_up_the_others() -> None:
    store = Store()
    intake = LabelIntake(cast("Any", store), cast("Any", NoVersions()), cast("Any", None), feature_limit=1)
    part = SimpleNamespace(predictions=SimpleNamespace(model="m", version="", info=None, predicted=None))
    await intake.take_labels(LabelBatch(7, cast("Any", (part,))))
    assert store.added == [({}, (LABELS, 7))]

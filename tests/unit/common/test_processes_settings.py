"""How many processes share a port, and where that is refused."""

import pytest

from services.common.settings import CommonSettings, InvalidSettings, read_settings
from services.inference.settings import InferenceSettings
from services.router.settings import Settings as RouterSettings


@pytest.mark.parametrize(
    ("kind", "environment", "problem"),
    [
        (RouterSettings, {"INTERLOCK_ROUTER_PROCESSES": "0"}, "greater than or equal to 1"),
        (
            RouterSettings,
            {"INTERLOCK_ROUTER_PROCESSES": "2", "INTERLOCK_SYSTEM_SHARED_MEMORY_BYTES": "1"},
            "want 1 with INTERLOCK_SYSTEM_SHARED_MEMORY_BYTES",
        ),
        (InferenceSettings, {"INTERLOCK_INFERENCE_PROCESSES": "2"}, "want 1 with INTERLOCK_DOOR=grpcio"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: type[CommonSettings], environment: dict[str, str], problem: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings, match=problem):
        read_settings(kind)


def test_each_service_has_its_own_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_ROUTER_PROCESSES", "3")
    monkeypatch.setenv("INTERLOCK_INFERENCE_PROCESSES", "2")
    monkeypatch.setenv("INTERLOCK_DOOR", "envoy")
    kinds = (CommonSettings, RouterSettings, InferenceSettings)
    assert [read_settings(kind).processes for kind in kinds] == [1, 3, 2]

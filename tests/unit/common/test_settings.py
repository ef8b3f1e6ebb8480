"""Settings from the environment."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.settings import CommonSettings, InvalidSettings, join_host_port, read_settings


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in list(os.environ):
        if key.startswith("INTERLOCK_"):
            monkeypatch.delenv(key)


def test_the_defaults_are_one_machine() -> None:
    settings = read_settings(CommonSettings)
    assert settings.state_dir == Path(".interlock")
    assert settings.registry_address == "127.0.0.1:9004"
    assert (settings.port_of("edge"), settings.metrics_port_of("router")) == (8080, 9101)
    assert settings.message_limit_bytes == 32 * 1024 * 1024


def test_one_offset_moves_every_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_PORT_OFFSET", "1000")
    monkeypatch.setenv("INTERLOCK_MONITOR_ADDRESS", "dns:///monitor:7")
    settings = read_settings(CommonSettings)
    assert settings.address_of("router") == "127.0.0.1:10001"
    assert settings.features_address == "127.0.0.1:10003"
    assert settings.monitor_address == "dns:///monitor:7"


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "example.org", ""])
def test_an_open_bind_without_identity_source_is_refused(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("INTERLOCK_BIND_HOST", host)
    if not host:
        assert read_settings(CommonSettings).bind_host == "127.0.0.1"
        return
    with pytest.raises(InvalidSettings, match=r"INTERLOCK_BIND_HOST=.*want a loopback address") as caught:
        read_settings(CommonSettings)
    assert "REGISTRY_ADDRESS" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_is_fine(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("INTERLOCK_BIND_HOST", host)
    assert read_settings(CommonSettings).registry_address == join_host_port(host, 9004)


def test_every_wrong_variable_is_named_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLOCK_PORT_OFFSET", "many")
    monkeypatch.setenv("INTERLOCK_DOOR", "window")
    with pytest.raises(InvalidSettings) as caught:
        read_settings(CommonSettings)
    text = str(caught.value)
    assert "INTERLOCK_PORT_OFFSET='many'" in text
    assert "INTERLOCK_DOOR='window'" in text
    assert "\n" not in text


def test_settings_are_frozen_and_documented() -> None:
    with pytest.raises(ValidationError):
        CommonSettings().port_offset = 3
    assert all(field.description for field in CommonSettings.model_fields.values())


def test_an_ipv6_address_gets_brackets() -> None:
    assert join_host_port("::1", 9001) == "[::1]:9001"

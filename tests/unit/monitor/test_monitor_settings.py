"""Sinks of alerts in the monitor's settings."""

import pytest

from services.common.settings import InvalidSettings, read_settings
from services.monitor.settings import Settings

NAME = "INTERLOCK_MONITOR_ALERT_SINKS"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"pager": {"kind": "webhook", "url": "http://a/hush", "secret": "hush"}}', "pager.webhook.secret: .* 16"),
        ('{"pager": {"kind": "webhook", "secret": "hush-hush-hush-hush"}}', "pager.webhook.url: Field required"),
        ('{"pager": {"kind": "fax", "secret": "hush"}}', "webhook"),
        ('{"log": {"kind": "alertmanager", "url": "http://a", "bearer_token": "hush"}}', "names other than log"),
        ("{hush", "monitor_alert_sinks.*want JSON"),
    ],
)
def test_wrong_sinks_are_refused_and_secrets_not_shown(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv(NAME, text)
    with pytest.raises(InvalidSettings, match=message) as caught:
        read_settings(Settings)
    assert "hush" not in str(caught.value)


def test_a_secret_is_read_and_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, '{"pager": {"kind": "webhook", "url": "http://a/b", "secret": "0123456789abcdef"}}')
    settings = read_settings(Settings)
    assert settings.monitor_alert_sinks["pager"].kind == "webhook"
    assert "0123456789abcdef" not in repr(settings)

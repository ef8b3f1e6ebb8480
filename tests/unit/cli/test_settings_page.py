"""The page of settings is what the classes say."""

from pathlib import Path

from interlock_cli.commands.settings import settings_page

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    wanted = "\n".join(settings_page()) + "\n"
    assert PAGE.read_text(encoding="utf-8") == wanted, "run: interlock settings --markdown > docs/settings.md"


def test_every_setting_is_explained() -> None:
    rows = [line for line in settings_page() if line.startswith("| `INTERLOCK_")]
    assert len(rows) > 40
    assert not [row for row in rows if row.endswith("|  |")]

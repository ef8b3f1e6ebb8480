"""One demo at a time in a state folder."""

from pathlib import Path

import pytest

from interlock_cli.demo.alone import alone
from interlock_cli.demo.failure import DemoFailed


def test_a_second_demo_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with alone(folder):
        with pytest.raises(DemoFailed, match="another demo"), alone(folder):
            pass
        with alone(tmp_path / "other"):
            pass
    with alone(folder):
        pass

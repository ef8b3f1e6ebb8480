"""The command line as a whole: whatever is typed, no traceback."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "arguments", [["nosuch"], ["predict"], ["up", "--nosuch"], ["deploy", "m", "1", "--traffic", "200"]]
)
def test_a_wrong_command_line_is_explained(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "interlock_cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr

"""The other opinions: NannyML and river, each in an environment of its own, since their pins are not ours."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
# statsmodels: NannyML 0.13.1 imports it without asking for it.
PACKAGES = {"nannyml": ["nannyml==0.13.1", "statsmodels"], "river": ["river==0.26.1"]}
INSTALL_TIMEOUT_S, RUN_TIMEOUT_S = 1_200, 600


@dataclass(frozen=True)
class Peer:
    """What a peer wrote, or why it could not."""

    verdicts: dict[str, Any]
    missing: str = ""


def ask(name: str, folder: Path) -> Peer:
    """Install the peer if need be, run it, and return its verdicts; data sets lie in the folder."""
    home = ROOT / f".venv-{name}"
    python = home / "bin" / "python"
    try:
        if not (home / ".installed").exists():
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=INSTALL_TIMEOUT_S)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[name]]
            subprocess.run(install, check=True, timeout=INSTALL_TIMEOUT_S)
            (home / ".installed").touch()
        script = Path(__file__).parent / f"peer_{name}.py"
        # NannyML reports its use to its makers unless told not to.
        environment = {**os.environ, "NML_DISABLE_USAGE_LOGGING": "1", "PYTHONPATH": ""}
        subprocess.run(
            [str(python), "-W", "ignore", str(script), str(folder)], check=True, timeout=RUN_TIMEOUT_S, env=environment
        )
        return Peer(json.loads((folder / f"{name}.json").read_text()))
    except (OSError, subprocess.SubprocessError) as error:
        return Peer({}, f"{type(error).__name__}: {error}")

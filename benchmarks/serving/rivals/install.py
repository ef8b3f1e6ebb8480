"""Makes the rivals' own environments: `python -m benchmarks.serving.rivals.install`. `.venv-rivals-*` at the root, ignored by git."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {
    # Carries the real tritonserver with its Python backend.
    "triton": ("nvidia-pytriton==0.7.0", "onnxruntime==1.31.1", "numpy==1.26.4"),
    "mosec": ("mosec==0.9.8", "onnxruntime==1.31.1", "numpy==2.4.6"),
}


def environment(rival: str) -> Path:
    return ROOT / f".venv-rivals-{rival}"


def main() -> None:
    for rival, packages in PACKAGES.items():
        folder = environment(rival)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *packages], check=False)
        print(f"{rival}: {'installed' if done.returncode == 0 else 'could not be installed; it will be skipped'}")


if __name__ == "__main__":
    main()

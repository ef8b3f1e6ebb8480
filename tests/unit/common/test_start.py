"""What a service imports before it is ready: every process of every test pays for it."""

import subprocess
import sys

# Only reports, queries and joins need these; OpenTelemetry's exporter only who has a collector.
_LATER = (
    "duckdb",
    "matplotlib",
    "pandas",
    "scipy.special",
    "scipy.stats",
    "opentelemetry.exporter",
)
_CODE = """
import sys
import services.inference.app, services.monitor.app, services.registry.app, services.router.app
print([name for name in {later} if name in sys.modules])
import services.features.app
print([name for name in ("duckdb", "pandas") if name in sys.modules])
"""


def test_no_service_waits_for_what_it_needs_later() -> None:
    code = _CODE.format(later=_LATER)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=50)
    assert found.stdout.split("\n") == ["[]", "[]", ""]

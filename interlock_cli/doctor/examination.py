"""All that the doctor looks at, in the order in which a start would trip over it."""

from collections.abc import Callable

from interlock_cli.doctor import machine, software, stack
from interlock_cli.doctor.finding import Finding
from interlock_cli.settings import StackSettings
from interlock_cli.stack.state_folder import StateFolder


def examine(settings: StackSettings) -> list[Finding]:
    """Return every finding; a check that fails itself is one that is not good."""
    folder = StateFolder.at(settings.state_dir)
    checks: tuple[Callable[[], Finding], ...] = (
        software.python_version,
        lambda: software.shared_python(settings),
        software.pinned_packages,
        software.envoy_runs,
        lambda: software.redis_there(settings),
        software.descriptor_set,
        lambda: stack.state_folder_usable(folder),
        lambda: stack.socket_paths_fit(folder),
        lambda: stack.ports_free(settings, folder),
        lambda: machine.disk_space(folder),
        machine.open_files,
        machine.shared_memory,
        machine.clock,
    )
    return [_guarded(check) for check in checks]


def _guarded(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a doctor that dies of a symptom helps nobody
        return Finding("examination", good=False, detail=f"a check failed: {error!r}", fix="report this as a bug")

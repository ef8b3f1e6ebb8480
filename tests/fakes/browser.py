"""A real browser without a window (Debian's chromium), asked over its DevTools protocol what it made of a page."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

PATIENCE_S = 40.0
# Nothing but the page: no updates, no reports, and no name is ever resolved.
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions", "--disable-breakpad",
    "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe",
)  # fmt: skip
# Where every plot is; what a reader would have to scroll sideways for.
_LOOK = """({
  plots: [...document.querySelectorAll("svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    return {label: svg.getAttribute("aria-label"), x: box.x, y: box.y, width: box.width, height: box.height};
  }),
  text: document.body.innerText,
  page: {x: 0, y: 0, width: document.body.scrollWidth, height: document.body.scrollHeight, scale: 1},
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""


@dataclass(frozen=True)
class Rendered:
    """A page as a browser shows it; lengths in CSS pixels."""

    text: str
    plots: list[dict[str, Any]]
    """Label, place and size of each."""
    overflow: float
    """How much wider than the window the page is."""
    requested: list[str]
    """Every address that was asked for."""
    problems: list[str]
    """What the browser's console complains of: scripts, styles, what was blocked."""
    screenshot: bytes
    """All of the page, as PNG, a pixel for each CSS pixel."""


def render(url: str, *, width: int = 1200) -> Rendered:
    """Show a page in a window of this width until it is loaded."""
    with _browser() as browser:
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            browser.ask(f"{domain}.enable")
        browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        browser.ask("Page.navigate", url=url)
        browser.wait_for("Page.loadEventFired")
        seen = browser.ask("Runtime.evaluate", expression=_LOOK, returnByValue=True)["result"]["value"]
        shown = browser.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=seen.pop("page"))
        problems = [
            *(event["entry"]["text"] for event in browser.events("Log.entryAdded")),
            *(event["exceptionDetails"]["text"] for event in browser.events("Runtime.exceptionThrown")),
        ]
        requested = [event["request"]["url"] for event in browser.events("Network.requestWillBeSent")]
    return Rendered(**seen, requested=requested, problems=problems, screenshot=base64.b64decode(shown["data"]))


@dataclass
class _Browser:
    """The protocol over a pipe: JSON messages with a zero byte behind each."""

    commands: int
    answers: int
    session: str = ""
    _sent: int = 0
    _unread: bytes = b""
    _events: list[dict[str, Any]] = field(default_factory=list)
    _deadline: float = field(default_factory=lambda: time.monotonic() + PATIENCE_S)

    def ask(self, method: str, **parameters: Any) -> Any:
        """Return the result of a command."""
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._sent:
            self._events.append(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def events(self, method: str) -> Iterator[dict[str, Any]]:
        """Yield what has been told so far."""
        return (event["params"] for event in self._events if event.get("method") == method)

    def wait_for(self, method: str) -> None:
        """Return once it has been told."""
        while next(self.events(method), None) is None:
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            left_s = self._deadline - time.monotonic()
            ready, _, _ = select.select([self.answers], [], [], max(0.0, left_s))
            assert ready, f"the browser has said nothing for {PATIENCE_S:g} s; events: {self._events[-3:]}"
            content = os.read(self.answers, 1 << 20)
            assert content, "the browser has ended"
            self._unread += content
        message, _, self._unread = self._unread.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def _browser() -> Iterator[_Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("chromium is missing: install the Debian package chromium (.ci/run does)", pytrace=False)
    with ExitStack() as opened, tempfile.TemporaryDirectory(prefix="il-") as folder:
        theirs_in, ours_out = _pipe(opened)
        ours_in, theirs_out = _pipe(opened)
        # The protocol is at 3 and 4.
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", program, *_OPTIONS]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={folder}"],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={**os.environ, "HOME": folder},
        )  # fmt: skip
        try:
            yield _Browser(ours_out, ours_in)
        finally:
            _end(psutil.Process(process.pid))
            process.wait(PATIENCE_S)


def _end(browser: psutil.Process) -> None:
    """Kill it with all its processes, which would write into its folder for a while yet."""
    processes = [browser, *browser.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes[1:], PATIENCE_S)


def _pipe(opened: ExitStack) -> tuple[int, int]:
    """Return both ends, reading first; none of them is 3 or 4."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        opened.callback(os.close, ends[-1])
        os.close(end)
    return ends[0], ends[1]

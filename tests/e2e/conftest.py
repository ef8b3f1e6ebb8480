"""One stack per door for the whole session, with the demo's models in it; and an OTLP receiver that both report to."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.clients.install import is_installed
from tests.e2e.clients import Clients
from tests.e2e.otlp import Receiver, receive_spans
from tests.e2e.stack import Stack, new_stack

DOORS = ("envoy", "grpcio")
DEMO_FLIGHTS = 400


class Stacks:
    """Stacks by door, each started when it is first asked for."""

    def __init__(self, opened: ExitStack, receiver: Receiver) -> None:
        self._opened = opened
        self._receiver = receiver
        self._by_doors: dict[tuple[str, str], Stack] = {}

    def of(self, door: str, inference_door: str = "grpcio") -> Stack:
        if (door, inference_door) not in self._by_doors:
            shared = {"SYSTEM_SHARED_MEMORY_BYTES": str(1 << 20)}
            variables = {"OTLP_ENDPOINT": self._receiver.endpoint, "INFERENCE_DOOR": inference_door, **shared}
            named = {f"INTERLOCK_{name}": value for name, value in variables.items()}
            stack = self._opened.enter_context(new_stack(door, **named))
            for other in self._by_doors.values():
                # What one stack has trained, the others need not train again.
                for trained in (other.folder / "demo").glob("*/"):
                    shutil.copytree(trained, stack.folder / "demo" / trained.name, dirs_exist_ok=True)
            stack.start()
            stack.succeed("demo", "--flights", str(DEMO_FLIGHTS), timeout_s=240)
            self._by_doors[door, inference_door] = stack
        return self._by_doors[door, inference_door]


@pytest.fixture(scope="session")
def spans() -> Iterator[Receiver]:
    with receive_spans() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def stacks(spans: Receiver) -> Iterator[Stacks]:
    with ExitStack() as opened:
        yield Stacks(opened, spans)


@pytest.fixture(params=DOORS)
def stack(request: pytest.FixtureRequest, stacks: Stacks) -> Iterator[Stack]:
    """The session's stack of one door; whole again before the next test gets it."""
    found = stacks.of(request.param)
    found.wait_until(found.is_ready, "the stack is whole before the test")
    yield found
    found.wait_until(found.is_ready, "the stack is whole after the test")


@pytest.fixture(scope="session")
def clients() -> Clients:
    """The foreign clients; what each saw of a stack is kept for the session."""
    assert is_installed(), "the foreign clients are not installed, or not as the repository says: run `make clients`"
    return Clients()

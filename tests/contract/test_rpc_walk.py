"""Every RPC of the stable contract has a handler, a happy case and an error case; every other one says UNIMPLEMENTED."""

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status

from tests.contract.descriptors import Rpc, our_rpcs
from tests.contract.rpc_marks import CASES, RpcMark, Unreadable, marks_below, marks_of
from tests.contract.service_process import running_service

TESTS = Path(__file__).resolve().parents[1]
SERVICES = ("router", "inference", "features", "registry", "monitor")
OPEN_INFERENCE = "inference.GRPCInferenceService"
STABLE = [rpc for rpc in our_rpcs() if rpc.package == "inference" or rpc.package.endswith(".v1")]
UNSTABLE = [rpc for rpc in our_rpcs() if rpc.package.endswith(".v1alpha1")]
NOT_IMPLEMENTED = ("UNIMPLEMENTED", "NOT_IMPLEMENTED")
TIMEOUT_S = 10.0

# What cannot be tested, by service and reason. A test for one of these makes its entry here a failure.
NOT_OFFERED = "an extension that this service answers with UNIMPLEMENTED, as its metadata says: nothing can go well"
REFUSED = "the registry decides what is loaded, so the answer is always a refusal"
NO_MISTAKE = "a question about the process itself: no answer to it is an error, and what is malformed the chain refuses"
_CUDA = [f"CudaSharedMemory{verb}" for verb in ("Status", "Register", "Unregister")]
_NOWHERE = [*_CUDA, "TraceSetting", "LogSettings"]
# Offered, and switched off unless a setting says otherwise.
OFF = {f"{OPEN_INFERENCE}/SystemSharedMemory{verb}" for verb in ("Status", "Register", "Unregister")}
EXEMPT: dict[tuple[str, str, str], str] = {
    **{(app, f"{OPEN_INFERENCE}/{name}", "happy"): NOT_OFFERED for app in ("router", "inference") for name in _NOWHERE},
    **{("router", f"{OPEN_INFERENCE}/{name}", "happy"): NOT_OFFERED for name in ("ModelConfig", "ModelStatistics")},
    **{
        (app, f"{service}/RepositoryModel{verb}", "happy"): REFUSED
        for app, service in (
            ("router", OPEN_INFERENCE),
            ("inference", OPEN_INFERENCE),
            ("router", "interlock.router.v1.RouterHttpService"),
        )
        for verb in ("Load", "Unload")
    },
    **{
        ("inference", f"{OPEN_INFERENCE}/{name}", "error"): NO_MISTAKE
        for name in ("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex")
    },
}


def apps_of(rpc: Rpc) -> tuple[str, ...]:
    """The services that serve an RPC: its area's, and for the Open Inference Protocol both that speak it."""
    return ("router", "inference") if rpc.package == "inference" else (rpc.package.split(".")[1],)


def served() -> list[tuple[str, str]]:
    """Each stable RPC with each service that serves it."""
    return [(app, rpc.name) for rpc in STABLE for app in apps_of(rpc)]


def area_of(mark: RpcMark) -> str:
    """The service whose tests hold a mark; empty for tests of the whole."""
    return next((part for part in mark.path.relative_to(TESTS).parts if part in SERVICES), "")


@cache
def covered() -> frozenset[tuple[str, str, str]]:
    """What the marks cover: service, RPC, case. A mark outside a service's tests counts for every service."""
    return frozenset(
        (app, mark.rpc, mark.case)
        for mark in marks_below(TESTS)
        for app in ([area_of(mark)] if area_of(mark) else SERVICES)
    )


def wanted() -> set[tuple[str, str, str]]:
    return {(app, rpc, case) for app, rpc in served() for case in CASES}


def test_every_stable_rpc_has_a_happy_and_an_error_case() -> None:
    missing = wanted() - covered() - EXEMPT.keys()
    assert sorted(f"{app}: {rpc}: {case}" for app, rpc, case in missing) == []


def test_an_exemption_is_needed_and_of_the_contract() -> None:
    assert EXEMPT.keys() <= wanted()
    assert EXEMPT.keys() & covered() == set()


def test_marks_name_rpcs_of_the_contract() -> None:
    known = {rpc.name for rpc in our_rpcs()}
    assert [f"{mark.path}:{mark.line}: {mark.rpc}" for mark in marks_below(TESTS) if mark.rpc not in known] == []


def answer(channel: grpc.Channel, rpc: Rpc) -> tuple[str, str]:
    """What an RPC answers first to an empty message: OK, or a code and the reason that our chain gave with it.

    With the synchronous client: grpc.aio's calls a stream INTERNAL, without asking the server, when it is refused before
    the first write is through.
    """
    shape = ("stream" if streams else "unary" for streams in (rpc.method.client_streaming, rpc.method.server_streaming))
    method: Any = getattr(channel, "_".join(shape))(f"/{rpc.name}")
    request = iter([b""]) if rpc.method.client_streaming else b""
    try:
        if rpc.method.server_streaming:
            call = method(request, timeout=TIMEOUT_S)
            next(call, None)
            call.cancel()
        else:
            method(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return refusal_of(error)
    return "OK", ""


def refusal_of(error: Any) -> tuple[str, str]:
    """The code and the reason of a failed call; the reason is empty when it was not our chain that refused."""
    info, status = ErrorInfo(), rpc_status.from_call(error)
    for detail in status.details if status else ():
        detail.Unpack(info)
    return error.code().name, info.reason


def answers(address: str, rpcs: list[Rpc]) -> dict[str, tuple[str, str]]:
    with grpc.insecure_channel(address) as channel:
        return {rpc.name: answer(channel, rpc) for rpc in rpcs}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("app", SERVICES)
async def test_a_stable_rpc_has_a_handler_and_every_other_says_unimplemented(app: str) -> None:
    """In a real process. The reason tells our refusal from grpcio's own words for a method that nobody bound."""
    async with running_service(app) as address:
        stable = await asyncio.to_thread(answers, address, [rpc for rpc in STABLE if app in apps_of(rpc)])
        unstable = await asyncio.to_thread(answers, address, [rpc for rpc in UNSTABLE if app in apps_of(rpc)])
    not_offered = {rpc for owner, rpc, _ in EXEMPT if owner == app and EXEMPT.get((owner, rpc, "happy")) == NOT_OFFERED}
    assert {rpc for rpc, (code, _) in stable.items() if code == "UNIMPLEMENTED"} == not_offered | (OFF & stable.keys())
    assert {rpc: found for rpc, found in stable.items() if found[0] in ("INTERNAL", "UNKNOWN")} == {}
    assert {rpc: found for rpc, found in unstable.items() if found != NOT_IMPLEMENTED} == {}


READABLE = """
import pytest
AREA = "a.v1.A"
GET = f"{AREA}/Get"
def rpc(method, case):
    return pytest.mark.rpc(f"{AREA}/{method}", case)
@pytest.mark.rpc("a.v1.A/One", "happy")
@pytest.mark.rpc(AREA + "/Two", case="error")
def test_literal(): ...
@rpc("Three", "happy")
async def test_short(): ...
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.rpc(f"{AREA}/Four", "error"))])
def test_table(n): ...
"""


def test_marks_are_read_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "test_forms.py").write_text(READABLE)
    found = {(mark.rpc, mark.case) for mark in marks_of(tmp_path / "test_forms.py")}
    assert found == {
        ("a.v1.A/One", "happy"),
        ("a.v1.A/Two", "error"),
        ("a.v1.A/Three", "happy"),
        ("a.v1.A/Four", "error"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "@pytest.mark.rpc('a/B', 'sad')\ndef test_case(): ...",
        "@pytest.mark.rpc('a/B')\ndef test_one_argument(): ...",
        "@pytest.mark.rpc(compute(), 'happy')\ndef test_computed(): ...",
        "@pytest.mark.rpc('a/B', 'happy')\ndef helper(): ...",
    ],
)
def test_a_mark_that_cannot_count_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "test_wrong.py").write_text(text)
    with pytest.raises(Unreadable, match=r"test_wrong\.py:1: want"):
        marks_of(tmp_path / "test_wrong.py")

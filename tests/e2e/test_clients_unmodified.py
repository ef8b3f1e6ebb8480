"""Triton's Python client in all its shapes, the KServe SDK and MLPerf LoadGen, unchanged, at the edge and at inference itself."""

from typing import Any

import pytest
from numpy.testing import assert_allclose

from tests.e2e.clients import OUTPUT, Clients
from tests.e2e.stack import Stack
from tests.e2e.test_clients_triton import model_outputs

pytestmark = pytest.mark.timeout(300)
REQUESTS = 8
PLACES = [("envoy", "edge"), ("grpcio", "edge"), ("envoy", "inference")]
everywhere = pytest.mark.parametrize(("stack", "place"), PLACES, indirect=["stack"])
# These take seconds to import; what they send differs little from what Triton's client sends.
at_two_places = pytest.mark.parametrize(("stack", "place"), PLACES[::2], indirect=["stack"])
NOT_OFFERED = "UNIMPLEMENTED"


def addresses(stack: Stack, place: str) -> tuple[str, str]:
    """The address for gRPC, and for HTTP where there is one."""
    return (stack.edge, stack.edge) if place == "edge" else (stack.address_of("inference"), "")


def assert_right(found: Any, stack: Stack, ids: list[str]) -> None:
    """Every answer is the model's, with the id that was sent, each once."""
    assert isinstance(found, list), found
    assert sorted(one["id"] for one in found) == ids
    for one in found:
        assert_allclose(one["data"], model_outputs(stack)[OUTPUT].ravel(), rtol=0, atol=1e-6)


@everywhere
@pytest.mark.parametrize("shape", ["grpc_aio", "grpc_compressed", "http_aio", "http_compressed"])
def test_tritons_client_in_other_shapes(stack: Stack, clients: Clients, place: str, shape: str) -> None:
    found = clients.other("triton_more.py", *addresses(stack, place))
    if place == "inference" and shape.startswith("http"):
        assert shape not in found
        return
    count = {"grpc_compressed": 2, "http_compressed": 4}.get(shape, REQUESTS)
    assert_right(found[shape], stack, [str(at) for at in range(count)])


@everywhere
def test_tritons_client_streams(stack: Stack, clients: Clients, place: str) -> None:
    found = clients.other("triton_more.py", *addresses(stack, place))["stream"]
    wrong = [one for one in found if "error" in one]
    assert len(wrong) == 1
    assert_right([one for one in found if "error" not in one], stack, [str(at) for at in range(REQUESTS) if at != 3])


@everywhere
def test_tritons_client_shares_memory(stack: Stack, clients: Clients, place: str) -> None:
    found = clients.other("triton_more.py", *addresses(stack, place))
    if place == "inference":
        assert "http_shared_memory" not in found
    for protocol in ("grpc", "http") if place == "edge" else ("grpc",):
        seen = found[f"{protocol}_shared_memory"]
        assert isinstance(seen, list), seen
        forth, back, gone = seen
        assert_right([forth], stack, ["0"])
        # The request has the same bytes, the region has the rows the other way round.
        assert back["id"] == "1"
        assert_allclose(back["data"], model_outputs(stack)[OUTPUT][::-1].ravel(), rtol=0, atol=1e-6)
        assert gone["regions"] == ["answers", "categories", "numbers"]
        assert 'is registered as "answers"' in gone["error"]


@at_two_places
def test_the_kserve_sdk(stack: Stack, clients: Clients, place: str) -> None:
    found = clients.other("kserve_client.py", *addresses(stack, place))
    assert set(found) == ({"grpc", "rest"} if place == "edge" else {"grpc"})
    for protocol, seen in found.items():
        assert seen["ready"] is seen["live"] is seen["model_ready"] is True, protocol
        for form in ("typed", "binary"):
            # Over REST the SDK itself drops the version that the answer names.
            assert seen[form]["version"] == ("1" if protocol == "grpc" else None), (protocol, form)
            assert_right([seen[form]], stack, ["job-9"])
    if "rest" in found:
        assert found["rest"]["unknown_model_ready"] is False
        assert "no-such-model" in found["rest"]["unknown_model"]


@at_two_places
def test_mlperf_loadgen_runs_its_server_scenario(stack: Stack, clients: Clients, place: str) -> None:
    """That it is VALID at half of what the machine can do is `python -m benchmarks.loadgen`; here, that every query is answered."""
    load: dict[str, Any] = {"qps": 50, "seconds": 0.5, "latency_ms": 10_000, "queries": 50}
    found = clients.other("loadgen_client.py", *addresses(stack, place), **load)
    assert found["failure_count"] == 0, found["failures"]
    assert "Min queries satisfied : Yes" in found["summary"], found["summary"]
    assert "No errors encountered" in found["summary"]

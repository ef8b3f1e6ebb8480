"""The log of changes: complete, chained, and tampering shows."""

from typing import Any

import grpc
import pytest
from interlock.registry.v1 import registry_service_pb2 as pb
from interlock.registry.v1.audit_entry_pb2 import AuditEntry
from interlock.registry.v1.model_pb2 import Model

from tests.fakes.registry_service import Registry, execute, refused

SERVICE = "interlock.registry.v1.RegistryService"


async def entries(registry: Registry, resource: str = "", page_size: int = 1_000) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    token = ""
    while True:
        request = pb.ListAuditEntriesRequest(resource=resource, page_size=page_size, page_token=token)
        page = await registry.api.ListAuditEntries(request)
        found += page.audit_entries
        token = page.next_page_token
        if not token:
            return found


async def verdict(registry: Registry) -> pb.VerifyAuditLogResponse:
    return await registry.api.VerifyAuditLog(pb.VerifyAuditLogRequest())


@pytest.mark.rpc(f"{SERVICE}/ListAuditEntries", "happy")
@pytest.mark.rpc(f"{SERVICE}/VerifyAuditLog", "happy")
async def test_every_change_is_logged_and_chained(registry: Registry) -> None:
    await registry.serve_versions(None)
    logged = await entries(registry, page_size=4)
    assert [entry.sequence for entry in logged] == list(range(1, len(logged) + 1))
    assert logged[0].previous_hash == "0" * 64
    assert [entry.previous_hash for entry in logged[1:]] == [entry.hash for entry in logged[:-1]]
    assert [(entry.principal, entry.action, entry.resource) for entry in logged[3:]] == [
        ("local", "CreateModel", "models/fraud"),
        ("local", "CreateModelVersion", "models/fraud/versions/1"),
        ("local", "CreateModelVersion", "models/fraud"),
        ("local", "DeployModel", "deployments/fraud-1-production"),
        ("local", "ReportReplica", "deployments/fraud-1-production"),
        ("local", "ReportReplica", "models/fraud/routes/production"),
    ]
    found = await verdict(registry)
    assert (found.intact, found.first_broken_sequence, found.entry_count) == (True, 0, len(logged))
    assert found.head_hash == logged[-1].hash


async def test_the_log_of_one_resource_shows_what_became_of_it(registry: Registry) -> None:
    await registry.create_model("fraud")
    metadata = (("x-correlation-id", "call-77"),)
    update = pb.UpdateModelRequest(model=Model(name="models/fraud", owner="x"))
    await registry.api.UpdateModel(update, metadata=metadata)
    created, updated = await entries(registry, "models/fraud")
    assert created.before_digest == ""
    assert created.after_digest == updated.before_digest != updated.after_digest
    assert updated.request_id == "call-77"


async def test_what_is_refused_is_not_logged(registry: Registry) -> None:
    before = await verdict(registry)
    with refused(grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND"):
        await registry.deploy()
    assert await verdict(registry) == before


@pytest.mark.parametrize(
    ("statement", "broken"),
    [
        ("UPDATE audit_entry SET principal = 'nobody' WHERE sequence = 2", 2),
        ("UPDATE audit_entry SET time_us = time_us + 1 WHERE sequence = 3", 3),
        ("DELETE FROM audit_entry WHERE sequence = 2", 2),
        ("DELETE FROM audit_entry WHERE sequence = 4", 4),
        ("UPDATE audit_entry SET sequence = 9 WHERE sequence = 4", 4),
    ],
)
async def test_tampering_shows(registry: Registry, database_url: str, statement: str, broken: int) -> None:
    await registry.create_model("fraud")
    await execute(database_url, statement)
    found = await verdict(registry)
    assert (found.intact, found.first_broken_sequence) == (False, broken)


@pytest.mark.rpc(f"{SERVICE}/ListAuditEntries", "error")
@pytest.mark.rpc(f"{SERVICE}/VerifyAuditLog", "error")
async def test_calls_on_the_log_are_refused(registry: Registry) -> None:
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await registry.api.ListAuditEntries(pb.ListAuditEntriesRequest(page_size=-1))
    page = await registry.api.ListAuditEntries(pb.ListAuditEntriesRequest(page_size=1))
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PAGE_TOKEN"):
        request = pb.ListAuditEntriesRequest(resource="models/x", page_token=page.next_page_token)
        await registry.api.ListAuditEntries(request)
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"):
        raw: Any = registry.channel.unary_unary(f"/{SERVICE}/VerifyAuditLog")
        await raw(b"\xff\xff no message")

"""Rows and what they stand for."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import RowMapping

from services.registry.convert.resource import resource_from_bytes, resource_to_bytes
from services.registry.domain.audit import AuditEntry, Author, microseconds
from services.registry.domain.resource import Deployment, Environment, Model, ModelVersion, Resource, ResourceT, Route

KINDS: Final[dict[type, str]] = {
    Model: "model",
    ModelVersion: "version",
    Environment: "environment",
    Deployment: "deployment",
    Route: "route",
}
VERSION_KIND: Final = KINDS[ModelVersion]
ROUTE_KIND: Final = KINDS[Route]
_TYPES: Final = {kind: type_ for type_, kind in KINDS.items()}
_SINCE: Final = datetime(1970, 1, 1, tzinfo=UTC)
# Ids count up and versions are listed newest first: the key counts down.
_LARGEST_ID: Final = 10**18


def time_of(time_us: int) -> datetime:
    """Return the time that a column holds."""
    return _SINCE + timedelta(microseconds=time_us)


def sort_key(kind: type, name: str) -> str:
    """Return what a resource is listed by: its name, a version by its id, newest first."""
    if kind is not ModelVersion:
        return name
    return f"{_LARGEST_ID - int(name.rsplit('/', 1)[1]):019d}"


def resource_row(resource: Resource, body: bytes) -> dict[str, Any]:
    """Return the columns of a resource."""
    other = ""
    if isinstance(resource, ModelVersion) and resource.semantic_version:
        other = f"{resource.model}/versions/{resource.semantic_version}"
    return {
        "name": resource.name,
        "folded_name": resource.name.lower(),
        "other_name": other or None,
        "folded_other_name": other.lower() or None,
        "kind": KINDS[type(resource)],
        "sort_key": sort_key(type(resource), resource.name),
        "model": getattr(resource, "model", ""),
        "model_version": getattr(resource, "model_version", ""),
        "environment": getattr(resource, "environment", ""),
        "pool": getattr(resource, "pool", ""),
        "body": body,
    }


def resource_of(kind: str, body: bytes) -> Resource:
    """Return the resource of a stored body."""
    found: Resource = resource_from_bytes(_TYPES[kind], body)
    return found


def body_of(resource: Resource) -> bytes:
    """Return the stored body of a resource."""
    return resource_to_bytes(resource)


def typed(kind: type[ResourceT], body: bytes) -> ResourceT:
    """Return the resource of a stored body whose kind is known."""
    return resource_from_bytes(kind, body)


def audit_row(entry: AuditEntry) -> dict[str, Any]:
    """Return the columns of an entry of the log."""
    return {
        "sequence": entry.sequence,
        "time_us": microseconds(entry.time),
        "principal": entry.author.principal,
        "action": entry.author.action,
        "resource": entry.resource,
        "before_digest": entry.before_digest,
        "after_digest": entry.after_digest,
        "request_id": entry.author.request_id,
        "previous_hash": entry.previous_hash,
        "hash": entry.hash,
    }


def audit_entry_of(row: RowMapping) -> AuditEntry:
    """Return the entry of a row."""
    return AuditEntry(
        sequence=row["sequence"],
        time=time_of(row["time_us"]),
        author=Author(row["principal"], row["action"], row["request_id"]),
        resource=row["resource"],
        before_digest=row["before_digest"],
        after_digest=row["after_digest"],
        previous_hash=row["previous_hash"],
        hash=row["hash"],
    )

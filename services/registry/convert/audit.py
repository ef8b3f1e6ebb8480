"""Entries of the log of changes, as the contract shows them."""

from interlock.registry.v1 import artifact_pb2, audit_entry_pb2

from services.common.stamp import time_to_proto
from services.registry.domain.audit import AuditEntry
from services.registry.domain.ports import StoredArtifact


def entry_to_proto(entry: AuditEntry) -> audit_entry_pb2.AuditEntry:
    """Return the contract's entry."""
    return audit_entry_pb2.AuditEntry(
        sequence=entry.sequence,
        time=time_to_proto(entry.time),
        principal=entry.author.principal,
        action=entry.author.action,
        resource=entry.resource,
        before_digest=entry.before_digest,
        after_digest=entry.after_digest,
        request_id=entry.author.request_id,
        previous_hash=entry.previous_hash,
        hash=entry.hash,
    )


def artifact_to_proto(stored: StoredArtifact) -> artifact_pb2.Artifact:
    """Return what the contract says of stored content."""
    message = artifact_pb2.Artifact(
        name=f"artifacts/{stored.digest}",
        size_bytes=stored.size_bytes,
        received_bytes=stored.received_bytes,
        complete=stored.complete,
    )
    if stored.create_time is not None:
        message.create_time.CopyFrom(time_to_proto(stored.create_time))
    return message

"""Messages of an upload, and names of content."""

from interlock.registry.v1 import artifact_service_pb2 as pb

from services.common.errors import DEADLINE_PASSED, INVALID_NAME, DeadlineExceeded, Violation, echo
from services.common.refusals import InvalidRequest
from services.common.text_check import is_digest
from services.registry.domain.upload import UploadStart

_PREFIX = "artifacts/"


def digest_of(name: str) -> str:
    """Return the digest in the name of content."""
    digest = name.removeprefix(_PREFIX)
    if not name.startswith(_PREFIX) or not is_digest(digest):
        want = "want artifacts/{digest}, the digest being 64 hexadecimal digits in lower case"
        raise InvalidRequest([Violation("name", f"{want}; got {echo(name)}")], INVALID_NAME)
    return digest


def start_of(message: pb.UploadArtifactRequest | None) -> UploadStart:
    """Return what the first message of an upload announces; None stands for a stream without messages."""
    if message is None or message.WhichOneof("message") != "start":
        got = "nothing" if message is None else message.WhichOneof("message") or "an empty one"
        raise InvalidRequest([Violation("start", f"want it in the first message, got {got}")])
    return UploadStart(message.start.digest, message.start.size_bytes, message.start.offset_bytes)


def chunk_of(message: pb.UploadArtifactRequest) -> bytes:
    """Return the bytes in a later message of an upload."""
    if message.WhichOneof("message") != "chunk":
        got = message.WhichOneof("message") or "an empty one"
        raise InvalidRequest([Violation("chunk", f"want bytes in every message after the first, got {got}")])
    return message.chunk


def too_quiet(limit_s: float) -> DeadlineExceeded:
    """Return the error for an upload that sends nothing."""
    return DeadlineExceeded(
        f"no message came for {limit_s:g} s; go on from received_bytes",
        reason=DEADLINE_PASSED,
        metadata={"limit_s": f"{limit_s:g}"},
    )

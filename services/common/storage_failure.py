"""What a service that keeps things answers when its storage fails; reasons are the contract's."""

import errno
from typing import Final

from services.common.errors import DEPENDENCY_UNAVAILABLE, ResourceExhausted, Unavailable

STORAGE_FULL: Final = "STORAGE_FULL"
NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEXT_ATTEMPT_S: Final = 1.0


class StorageFull(ResourceExhausted):
    """The disk is full; reads go on, and writes once there is room."""

    def __init__(self, service: str) -> None:
        super().__init__(f"the disk of {service} is full; make room and try again", reason=STORAGE_FULL)


class DatabaseUnavailable(Unavailable):
    """The database does not answer."""

    def __init__(self, service: str) -> None:
        super().__init__(
            f"the database of {service} does not answer; try again",
            reason=DEPENDENCY_UNAVAILABLE,
            retry_after_s=_NEXT_ATTEMPT_S,
        )

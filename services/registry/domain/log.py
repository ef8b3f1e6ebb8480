"""A check of the whole log of changes."""

from typing import Final

from services.registry.domain.audit import ChainCheck, Verdict
from services.registry.domain.ports import Store

_ENTRIES_A_READ: Final = 1_000


async def verify_log(store: Store) -> Verdict:
    """Recompute the chain from the first entry to the one that was the last when the check began."""
    recorded = await store.audit_head()
    check = ChainCheck()
    while check.head.sequence < recorded.sequence:
        entries = await store.audit_entries("", check.head.sequence, _ENTRIES_A_READ)
        entries = [entry for entry in entries if entry.sequence <= recorded.sequence]
        if not entries:
            break
        check.add(entries)
    return check.verdict(recorded)

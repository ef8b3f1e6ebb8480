"""The hash chain: whatever is done to the log afterwards shows."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.registry.domain.audit import AuditEntry, Author, ChainCheck, ChainHead, entry_hash, seal
from tests.unit.registry.builders import NOW

COUNT = 12


def log() -> list[AuditEntry]:
    entries: list[AuditEntry] = []
    head = ChainHead()
    for number in range(1, COUNT + 1):
        entry = seal(
            AuditEntry(
                sequence=number,
                time=NOW + timedelta(seconds=number),
                author=Author("local", "DeployModel", f"call-{number}"),
                resource=f"deployments/d{number}",
                before_digest="",
                after_digest="ab" * 32,
                previous_hash=head.hash,
            )
        )
        entries.append(entry)
        head = ChainHead(number, entry.hash)
    return entries


LOG = log()
HEAD = ChainHead(COUNT, LOG[-1].hash)


def first_broken(entries: list[AuditEntry], head: ChainHead = HEAD) -> int:
    check = ChainCheck()
    check.add(entries[:5])
    check.add(entries[5:])
    return check.verdict(head).first_broken_sequence


def test_a_log_that_nobody_touched_is_intact() -> None:
    check = ChainCheck()
    check.add(LOG)
    verdict = check.verdict(HEAD)
    assert (verdict.first_broken_sequence, verdict.entry_count, verdict.head_hash) == (0, COUNT, HEAD.hash)


FIELDS: dict[str, Callable[[AuditEntry], AuditEntry]] = {
    "time": lambda entry: replace(entry, time=entry.time + timedelta(microseconds=1)),
    "principal": lambda entry: replace(entry, author=replace(entry.author, principal="x")),
    "action": lambda entry: replace(entry, author=replace(entry.author, action="x")),
    "request": lambda entry: replace(entry, author=replace(entry.author, request_id="x")),
    "resource": lambda entry: replace(entry, resource="x"),
    "before": lambda entry: replace(entry, before_digest="x"),
    "after": lambda entry: replace(entry, after_digest="x"),
    "previous": lambda entry: replace(entry, previous_hash="x"),
    "hash": lambda entry: replace(entry, hash="x"),
    "moved text": lambda entry: replace(
        entry, resource=entry.resource[:-1], before_digest=entry.resource[-1] + entry.before_digest
    ),
    "rewritten": lambda entry: seal(replace(entry, resource="x")),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("index", [0, 4, 5, COUNT - 1])
def test_an_edited_entry_shows(field: str, index: int) -> None:
    edited = [*LOG[:index], FIELDS[field](LOG[index]), *LOG[index + 1 :]]
    found = first_broken(edited)
    # An entry that was sealed again is sound by itself: the next one gives it away, or the head.
    assert found == min(index + 1 + (field == "rewritten"), COUNT)


@settings(deadline=None, max_examples=100)
@given(st.permutations(range(COUNT)), st.integers(0, COUNT))
def test_lost_and_moved_entries_show(order: list[int], kept: int) -> None:
    entries = [LOG[index] for index in order][:kept]
    if entries == LOG:
        assert first_broken(entries) == 0
        return
    wrong = next((place for place, entry in enumerate(entries) if entry != LOG[place]), len(entries))
    assert first_broken(entries) == wrong + 1


def test_a_cut_tail_shows_by_the_head_that_was_kept() -> None:
    assert first_broken(LOG[:-1]) == COUNT
    assert first_broken(LOG[:-1], ChainHead(COUNT - 1, LOG[-2].hash)) == 0


def test_the_hash_is_part_of_the_contract_with_old_logs() -> None:
    """A log that was written by an earlier release must verify for ever: this value may not change."""
    assert entry_hash(LOG[0]) == "235b383c9ff9c8919dac589596f0cfaeafc936220e89f78e9df7d890e809d313"

"""docs/contracts.md says what the contract says: every name on it exists, every RPC is on it, states are true."""

import re
from dataclasses import dataclass

from tests.contract.descriptors import ROOT, known_names, our_rpcs

STATES = {"v1", "v1, refused", "v1alpha1", "OIP"}
OIP = "inference"


@dataclass(frozen=True)
class Row:
    """One line of a table: what it is about, the names in its second column, its state."""

    what: str
    names: tuple[str, ...]
    state: str


def read_rows() -> tuple[list[Row], list[Row]]:
    """The rows that map promises, and the rows that list RPCs by service."""
    promises, listing = (ROOT / "docs" / "contracts.md").read_text().split("## Every RPC")
    return _rows(promises), _rows(listing)


def _rows(text: str) -> list[Row]:
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]
    return [
        Row(row[0], tuple(re.findall(r"`([^`]+)`", row[1])), row[2].removesuffix(" |").strip())
        for row in cells
        if len(row) == 3 and row[0] not in {"what", "service", "---"}
    ]


PROMISES, LISTING = read_rows()


def full_name(name: str) -> str:
    return name if name.startswith(("grpc.", "inference.")) and name in known_names() else f"interlock.{name}"


def state_of(package: str) -> str:
    if package == OIP:
        return "OIP"
    return "v1alpha1" if package.endswith("v1alpha1") else "v1"


def test_the_page_has_both_parts() -> None:
    assert len(PROMISES) > 60
    assert len(LISTING) > 20


def test_every_promise_names_what_exists() -> None:
    assert [row.what for row in PROMISES if not row.names] == []
    assert [name for row in PROMISES for name in row.names if full_name(name) not in known_names()] == []


def test_every_promise_has_a_true_state() -> None:
    assert {row.state for row in PROMISES} == STATES
    wrong = {
        (row.what, name)
        for row in PROMISES
        for name in row.names
        if state_of(known_names().get(full_name(name), "")) != row.state.split(",")[0]
    }
    assert wrong == set()


def test_the_list_of_rpcs_is_complete_and_true() -> None:
    want: dict[str, tuple[str, set[str]]] = {}
    for rpc in our_rpcs():
        want.setdefault(rpc.service, (state_of(rpc.package), set()))[1].add(rpc.method.name)
    got = {full_name(row.what.strip("`")): (row.state, set(row.names)) for row in LISTING}
    assert got == want

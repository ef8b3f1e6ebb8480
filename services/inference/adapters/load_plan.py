"""What the front end asks the model process to load, and how a refusal is worded."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.inference.domain.tensor import TensorSpec

_PREFIX: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_INSIDE: Final = re.compile(r"\S*(?:/|\\|::|0x|\.py\b|\.cc\b|\.h:)\S*")
_TEXT_LIMIT_CHARS: Final = 300


class LoadRefused(Exception):
    """The version cannot be loaded. The text is for people: no path, no class."""

    def __init__(self, message: str, *, corrupt_digest: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.corrupt_digest = corrupt_digest


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file of the version: its path there, where it lies here, and its SHA-256."""

    path: str
    local: Path
    digest: str


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A version, ready to be loaded from local files."""

    files: tuple[LocalFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch_sizes: tuple[int, ...]
    intra_op_threads: int
    memory_limit_bytes: int


def parse_plan(meta: bytes) -> LoadPlan:
    """Return the plan that a LOAD frame carries."""
    document: Mapping[str, Any] = json.loads(meta)
    return LoadPlan(
        files=tuple(LocalFile(entry["path"], Path(entry["local"]), entry["digest"]) for entry in document["files"]),
        inputs=_specs(document["inputs"]),
        outputs=_specs(document["outputs"]),
        batch_sizes=tuple(document["batch_sizes"]),
        intra_op_threads=document["intra_op_threads"],
        memory_limit_bytes=document["memory_limit_bytes"],
    )


def plain_text(error: BaseException) -> str:
    """Return what a library says, in one short line without anything that looks like a path or a type of its own."""
    text = " ".join(_PREFIX.sub("", str(error)).split())
    return _INSIDE.sub("...", text)[:_TEXT_LIMIT_CHARS]


def _specs(entries: Sequence[Sequence[Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, datatype, tuple(shape)) for name, datatype, shape in entries)

"""What somebody registers as a version: checked whole, then immutable."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any, Final

from services.common import names
from services.common.errors import Violation, echo
from services.common.text_check import check_digest, check_pairs, check_text
from services.registry.domain.baseline import Baseline, check_baseline
from services.registry.domain.failure import SIGNATURE_FIELD
from services.registry.domain.golden import GoldenRow, check_golden_rows
from services.registry.domain.signature import Signature
from services.registry.domain.signature_check import check_signature

FILE_LIMIT: Final = 1_000
PATH_LIMIT_CHARS: Final = 512
DESCRIPTION_LIMIT_CHARS: Final = 10_000
URI_LIMIT_CHARS: Final = 2_000
METRIC_LIMIT: Final = 128
PARAMETER_LIMIT: Final = 256
_PARAMETER_KEY_CHARS: Final = 256
_PARAMETER_VALUE_CHARS: Final = 10_000
_PATH: Final = "model_version"
# Semantic versioning without build metadata, whose plus sign no name may hold.
_SEMANTIC: Final = re.compile(
    r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?", re.ASCII
)
_ALIAS: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,127}", re.ASCII)

Violations = Iterator[Violation]


class Runtime(Enum):
    """What runs a version."""

    ONNX = "ONNX"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a version: its path inside it and the digest of its content."""

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version comes from."""

    training_data_uri: str = ""
    training_data_digest: str = ""
    code_revision: str = ""
    parent_version: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDraft:
    """A version that somebody wants registered; `document` is the contract's message, cleaned of what is ours to say."""

    runtime: Runtime | None
    files: tuple[ModelFile, ...]
    signature: Signature
    semantic_version: str = ""
    baseline: Baseline | None = None
    golden_rows: tuple[GoldenRow, ...] = ()
    lineage: Lineage = field(default_factory=Lineage)
    description: str = ""
    document: bytes = field(default=b"", repr=False)

    @property
    def fetched_features(self) -> tuple[str, ...]:
        """Names of the features that do not come with the request."""
        return tuple(feature.name for feature in self.signature.features if feature.fetched)

    def digest(self) -> str:
        """Return SHA-256 over runtime, files and signature: two versions with the same digest answer alike."""
        decisive = {
            "runtime": self.runtime,
            "files": [(file.path, file.digest) for file in self.files],
            "signature": asdict(self.signature),
        }
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), default=_plain)
        return hashlib.sha256(text.encode()).hexdigest()


def check_draft(draft: VersionDraft) -> Violations:
    """Yield everything that is wrong with a draft, whatever the state of the registry."""
    if draft.runtime is None:
        yield Violation(f"{_PATH}.runtime", "want ONNX, got none that this release knows")
    if draft.semantic_version and not is_semantic_version(draft.semantic_version):
        yield Violation(
            f"{_PATH}.semantic_version",
            f"want <major>.<minor>.<patch> with an optional -<pre-release>, got {echo(draft.semantic_version)}",
        )
    yield from check_text(draft.description, f"{_PATH}.description", DESCRIPTION_LIMIT_CHARS)
    yield from _check_files(draft.files, f"{_PATH}.files")
    yield from check_signature(draft.signature, SIGNATURE_FIELD)
    if draft.baseline is not None:
        yield from check_baseline(draft.baseline, draft.signature, f"{_PATH}.baseline")
    yield from check_golden_rows(draft.golden_rows, draft.signature, f"{_PATH}.golden_rows")
    yield from _check_lineage(draft.lineage, f"{_PATH}.lineage")


def is_semantic_version(text: str) -> bool:
    """Return whether this is a semantic version that can stand in a name."""
    return names.is_id(text) and _SEMANTIC.fullmatch(text) is not None


def is_alias(text: str) -> bool:
    """Return whether this can be an alias: it starts with a letter and holds no dot, so it is never a version."""
    return _ALIAS.fullmatch(text) is not None


def is_version_id(text: str) -> bool:
    """Return whether this is a decimal version id."""
    return text.isascii() and text.isdecimal()


def _check_files(files: Sequence[ModelFile], path: str) -> Violations:
    if not 1 <= len(files) <= FILE_LIMIT:
        yield Violation(path, f"want 1 to {FILE_LIMIT} files, got {len(files)}")
        return
    taken: dict[str, str] = {}
    for index, file in enumerate(files):
        yield from check_digest(file.digest, f"{path}[{index}].digest")
        yield from _check_path(file.path, taken, f"{path}[{index}].path")
    for folder in sorted(_folders(taken) & taken.keys()):
        yield Violation(path, f"want files that are no folder of others, got {echo(taken[folder])} as both")


def _check_path(path: str, taken: dict[str, str], field_path: str) -> Violations:
    # File systems may not tell cases apart: two paths that differ in case only would be one file there.
    if len(path) > PATH_LIMIT_CHARS or not all(map(names.is_id, path.split("/"))):
        want = f"at most {PATH_LIMIT_CHARS} characters, segments apart by /, each of {names.ID_RULE}"
        yield Violation(field_path, f"want {want}; got {echo(path)}")
    elif path.lower() in taken:
        yield Violation(field_path, f"want a path of its own, got {echo(path)} beside {echo(taken[path.lower()])}")
    taken[path.lower()] = path


def _folders(paths: Mapping[str, str]) -> set[str]:
    parts = [path.split("/") for path in paths]
    return {"/".join(segments[:depth]) for segments in parts for depth in range(1, len(segments))}


def _check_lineage(lineage: Lineage, path: str) -> Violations:
    for name in ("training_data_uri", "training_data_digest", "code_revision"):
        yield from check_text(getattr(lineage, name), f"{path}.{name}", URI_LIMIT_CHARS)
    if lineage.parent_version:
        wrong = names.VERSION.violation(lineage.parent_version, f"{path}.parent_version")
        if wrong is not None:
            yield wrong
    if len(lineage.metrics) > METRIC_LIMIT:
        yield Violation(f"{path}.metrics", f"want at most {METRIC_LIMIT}, got {len(lineage.metrics)}")
    elif not all(map(math.isfinite, lineage.metrics.values())):
        yield Violation(f"{path}.metrics", "want finite numbers, got NaN or an infinity")
    yield from check_pairs(
        lineage.parameters,
        f"{path}.parameters",
        limit=PARAMETER_LIMIT,
        key_chars=_PARAMETER_KEY_CHARS,
        value_chars=_PARAMETER_VALUE_CHARS,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value).__name__} has no canonical form")

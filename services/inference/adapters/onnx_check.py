"""Checks on an ONNX file before any runtime sees it.

The runtime itself would follow a hard link out of the version's files, and would load operators that only a library of
somebody's own can bring. Both are refused here, with what breaks ONNX's own rules.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
from google.protobuf.message import DecodeError
from onnx import checker

from services.inference.adapters.load_plan import LoadRefused, LocalFile, plain_text

_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operators of ONNX, and those that ONNX Runtime brings along."""
_CHUNK_BYTES: Final = 1 << 20


def read_model(files: Sequence[LocalFile]) -> tuple[bytes, bool]:
    """Return the graph's bytes and whether its weights lie in other files. Raises `LoadRefused`.

    Every file is checked for its digest; the graph is the first one.
    """
    for file in files:
        _check_file(file)
    data = files[0].local.read_bytes()
    if hashlib.sha256(data).hexdigest() != files[0].digest:
        raise LoadRefused(f"file {files[0].path} changed while it was read", corrupt_digest=files[0].digest)
    model = _parse(data, files[0].path)
    external = _check_external(model, files)
    _check_domains(model)
    _check_rules(data, files[0], external=external)
    return data, external


def _check_file(file: LocalFile) -> None:
    """Refuse what is not a plain file of its own, or not the bytes that were registered."""
    try:
        status = os.lstat(file.local)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise LoadRefused(f"file {file.path} must be a regular file of its own, not a link")
        digest = _sha256(file.local)
    except OSError:
        raise LoadRefused(f"file {file.path} cannot be read", corrupt_digest=file.digest) from None
    if digest != file.digest:
        raise LoadRefused(
            f"file {file.path} is corrupt: want SHA-256 {file.digest}, got {digest}", corrupt_digest=file.digest
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _parse(data: bytes, path: str) -> Any:
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise LoadRefused(f"file {path} is no ONNX model: its bytes cannot be parsed") from None
    if not model.graph.node and not model.graph.output:
        raise LoadRefused(f"file {path} is no ONNX model: it has no graph")
    return model


def _check_rules(data: bytes, graph: LocalFile, *, external: bool) -> None:
    try:
        # With weights in other files the checker must know where to look for them.
        checker.check_model(str(graph.local) if external else data)
    except Exception as error:  # noqa: BLE001 - the checker raises many kinds, all of them say the same: refused
        raise LoadRefused(f"the model breaks the rules of ONNX: {plain_text(error)}") from None


def _check_domains(model: Any) -> None:
    own = {function.domain for function in model.functions}
    nodes = [*_nodes(model.graph), *(node for function in model.functions for node in _nodes(function))]
    foreign = sorted({node.domain for node in nodes} - _DOMAINS - own)
    if foreign:
        raise LoadRefused(
            f"the model uses operators of the domain {foreign[0]!r}; want {', '.join(sorted(_DOMAINS - {''}))}"
        )


def _check_external(model: Any, files: Sequence[LocalFile]) -> bool:
    """Refuse weights outside the version's own files; return whether there are any in files at all."""
    listed = {file.path for file in files[1:]}
    folder = Path(files[0].path).parent
    found = False
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        found = True
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        path = Path(location)
        if path.is_absolute() or ".." in path.parts or str(folder / path) not in listed:
            raise LoadRefused("the model keeps weights in a file that is not one of the version's files")
    return found


def _graphs(graph: Any) -> Iterator[Any]:
    """Walk a graph or function with all graphs inside its nodes' attributes."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        for node in current.node:
            for attribute in node.attribute:
                pending.extend([attribute.g] if attribute.HasField("g") else [])
                pending.extend(attribute.graphs)


def _nodes(graph: Any) -> Iterator[Any]:
    for inner in _graphs(graph):
        yield from inner.node


def _tensors(model: Any) -> Iterator[Any]:
    for root in (model.graph, *model.functions):
        for graph in _graphs(root):
            yield from _weights(graph)
            for node in graph.node:
                for attribute in node.attribute:
                    yield from _attribute_tensors(attribute)


def _weights(graph: Any) -> Iterator[Any]:
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)


def _attribute_tensors(attribute: Any) -> Iterable[Any]:
    yield from [attribute.t] if attribute.HasField("t") else []
    yield from attribute.tensors
    sparse = [*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []), *attribute.sparse_tensors]
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)

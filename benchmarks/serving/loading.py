"""Runs `load.c`: requests in, rates, latencies and checked answers out."""

import json
import struct
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hpack import Decoder, Encoder

HERE = Path(__file__).parent
LOAD_CORE = 1
# How many answers of a cell are compared with the oracle.
_SAMPLES = 200


class LoadFailed(Exception):
    """The load could not run, or an answer was wrong."""


@dataclass(frozen=True)
class Asks:
    """Distinct requests to one path, and what the answer to each must be."""

    protocol: str
    requests: Sequence[bytes]
    headers: Sequence[tuple[str, str]]
    check: Callable[[int, bytes], bool]
    rows: int = 1


@dataclass(frozen=True)
class Cell:
    """What one short run measured."""

    ok_count: int
    seconds: float
    latencies_s: np.ndarray
    checked: int

    @property
    def per_second(self) -> float:
        return self.ok_count / self.seconds

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent)) * 1e3


class Loader:
    """Compiles the load once and runs it on its own core."""

    def __init__(self, folder: Path, connections: int = 4) -> None:
        self._folder = folder
        self._connections = connections
        self._program = folder / "load"
        command = ["cc", "-O2", "-D_GNU_SOURCE", "-o", str(self._program), str(HERE / "load.c"), "-lm"]
        subprocess.run(command, check=True)
        self._written: dict[int, tuple[Asks, Path]] = {}

    def run(self, port: int, asks: Asks, in_flight: int, seconds: float, rate: float = 0.0) -> Cell:
        """Run for some seconds; raises LoadFailed when a call failed or a sampled answer is not the model's.

        With a rate so many calls a second begin, whatever is answered, and at most `in_flight` are out.
        """
        requests = self._file_of(asks)
        out = self._folder / "out"
        connections = min(in_flight, self._connections)
        command = [
            "taskset", "-c", str(LOAD_CORE), str(self._program), str(port), asks.protocol, str(in_flight), str(connections),
            f"{seconds:.3f}", str(requests), f"{requests}.headers", str(out), "37", f"{rate:.3f}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
        if done.returncode:
            raise LoadFailed(done.stderr.strip())
        head, _, rest = out.read_bytes().partition(b"\n")
        said = json.loads(head)
        ok_count = _ok_count(asks, said)
        if ok_count != said["finished"] or said["failed"] or said["other"]:
            raise LoadFailed(f"{ok_count} good of {said['finished']}; {_statuses(said)}, failed: {said['failed']}")
        return Cell(
            ok_count, said["seconds"], np.frombuffer(rest, np.float64), self._check(asks, Path(f"{out}.answers"))
        )

    def _file_of(self, asks: Asks) -> Path:
        found = self._written.get(id(asks))
        if found is None:
            path = self._folder / f"requests-{len(self._written)}"
            parts = [struct.pack("<I", len(asks.requests))]
            parts += [struct.pack("<I", len(one)) + one for one in asks.requests]
            path.write_bytes(b"".join(parts))
            Path(f"{path}.headers").write_bytes(_block(asks.headers))
            found = self._written[id(asks)] = (asks, path)
        return found[1]

    def _check(self, asks: Asks, path: Path) -> int:
        data, at, checked = path.read_bytes(), 0, 0
        while at < len(data) and checked < _SAMPLES:
            row, size = struct.unpack_from("<II", data, at)
            if not asks.check(row, data[at + 8 : at + 8 + size]):
                raise LoadFailed(f"request {row}: the answer is not the model's")
            checked, at = checked + 1, at + 8 + size
        return checked


def grpc_body(message: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(message)) + message


def h1_request(path: str, headers: Sequence[tuple[str, str]], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def h2_headers(path: str, content_type: str, *more: tuple[str, str]) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", content_type),
        *more,
    ]


def _block(headers: Sequence[tuple[str, str]]) -> bytes:
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode(list(headers), huffman=False)


def _ok_count(asks: Asks, said: dict) -> int:
    if said["http"]:
        return said["http"].get("200", 0)
    return sum(count for status, count in _statuses(said).items() if status == "0")


def _statuses(said: dict) -> dict[str, int]:
    decoder = Decoder()
    decoder.header_table_size = 0
    found: dict[str, int] = dict(said["http"])
    for block, count in said["trailers"].items():
        fields = dict(decoder.decode(bytes.fromhex(block)))
        status = fields.get("grpc-status", "none")
        key = status if status == "0" else f"{status} {fields.get('grpc-message', '')}"
        found[key] = found.get(key, 0) + count
    return found

"""One HTTP/1.1 request over a Unix socket: Envoy's admin interface, and the probes of a launcher's processes."""

import asyncio
from pathlib import Path


async def ask(socket_path: Path, verb: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Return status and body; raises OSError or TimeoutError when nobody answers."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_unix_connection(str(socket_path))
        try:
            head = f"{verb} {path} HTTP/1.1\r\nhost: local\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            writer.write(head.encode())
            answer = await reader.read()
        finally:
            writer.close()
    header, _, body = answer.partition(b"\r\n\r\n")
    parts = header.split(b" ", 2)
    if len(parts) < 3:
        raise OSError(f"who listens on {socket_path.name} hung up")
    return int(parts[1]), body

"""One HTTP/1.1 request, mostly over a Unix socket: Envoy's admin interface, and the probes of processes."""

import asyncio
from pathlib import Path


async def ask(socket_path: Path, verb: str, path: str, timeout_s: float) -> tuple[int, bytes]:
    """Return status and body; raises OSError or TimeoutError when nobody answers."""
    async with asyncio.timeout(timeout_s):
        return await exchange(*await asyncio.open_unix_connection(str(socket_path)), verb, path, socket_path.name)


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, verb: str, path: str, name: str
) -> tuple[int, bytes]:
    """Ask over a connection, which is closed then; return status and body. Raises OSError, with the `name`, without an answer."""
    try:
        head = f"{verb} {path} HTTP/1.1\r\nhost: local\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.read()
    finally:
        writer.close()
    header, _, body = answer.partition(b"\r\n\r\n")
    parts = header.split(b" ", 2)
    if len(parts) < 3 or not parts[1].isdigit():
        raise OSError(f"who listens on {name} hung up")
    return int(parts[1]), body

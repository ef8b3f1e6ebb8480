"""What a join may use; apart from the engine, so that the service starts without DuckDB."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineLimits:
    """What DuckDB may use; `temp_dir` is where it goes when the memory is full."""

    temp_dir: str
    memory_mib: int = 2048
    temp_mib: int = 65_536
    threads: int = 1

"""The `interlock` command: a stack on this machine, and a thin client of the public API."""

import services  # noqa: F401 - before grpc: it is told there how children begin

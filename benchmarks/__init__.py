"""Measurements, one command each; README.md says how they are made."""

import services  # noqa: F401 - before grpc: it is told there how children begin

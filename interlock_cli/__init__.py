"""The `interlock` command: a stack on this machine, and a thin client of the public API."""

"""What the router decides: assignment, routing, validation, gathering. No transport, no stubs, no I/O."""

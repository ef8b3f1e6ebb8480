"""What lies outside: the database of definitions, Redis, the history, other services."""

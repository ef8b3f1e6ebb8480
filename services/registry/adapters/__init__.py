"""The registry's outside: the database and the store of content."""

"""The registry's rules in its own nouns: no transport, no stub, no database."""

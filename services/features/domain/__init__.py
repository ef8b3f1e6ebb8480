"""The features service's rules in its own nouns: no transport, no stub, no store."""

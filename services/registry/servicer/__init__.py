"""The registry's RPCs: convert in, one call of the domain, convert out."""

"""The router's RPCs: convert in, one use case, convert out."""

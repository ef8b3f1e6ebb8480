"""The rules of features: what views hold, and what their values are as of a time."""

"""The model process: one version, its runtime, and a socket to the front end. It imports no transport."""

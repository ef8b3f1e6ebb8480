"""Inference: runs model versions.

It loads what the registry wants loaded in its pool, warms it, checks golden rows, and only then says READY. It owns
batching, admission and the model processes. It knows nothing of users, experiments, routes or features.
"""

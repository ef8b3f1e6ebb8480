"""The registry: the source of truth on models, versions, artifacts, deployments and routes, and the log of changes.

It owns what should be loaded and who gets which traffic, and pushes both to whoever watches. It never loads a model,
answers a prediction or asks another service anything.
"""

"""The router: the front door of the suite.

It owns one request from its arrival to its answer: it validates against the signature, chooses the variant of the
model's route, asks inference over the coalescing stream and hands the event to the monitor. It keeps no state beyond
the last configuration that the registry pushed, and it never loads a model, never decides weights and never asks the
registry in the path of a request.
"""

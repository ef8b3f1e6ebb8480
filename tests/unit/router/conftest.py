"""Hypothesis without a time limit per example: the machine that runs the tests may be busy."""

from hypothesis import settings

settings.register_profile("interlock", deadline=None, max_examples=50)
settings.load_profile("interlock")

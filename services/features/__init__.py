"""Answers "values for these entities now", and "values as they were known then".

Owns feature views, entities and their values. Never runs a model and knows nothing of users or traffic. In this release
the contract is written (interlock.features.v1alpha1) and every method of it answers UNIMPLEMENTED.
"""

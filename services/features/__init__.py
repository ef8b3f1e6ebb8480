"""Answers "values for these entities now", and "values as they were known then".

Owns entities, feature views and their values. Never runs a model and knows nothing of users or traffic.
"""

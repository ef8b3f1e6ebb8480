"""Prediction events to the monitor: gathered in columns, bounded, never in the way of a request."""

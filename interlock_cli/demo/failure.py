"""Why the demo cannot go on."""


class DemoFailed(Exception):
    """Says in one line what stands in the way."""

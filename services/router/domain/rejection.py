"""Why a value is refused, before anyone knows which field of which request it stands in."""


class Reject(Exception):
    """Says what was wanted and what came: "want ..., got ..."; whoever knows the field makes a violation of it."""

"""What a command tells its user instead of a traceback."""

from collections.abc import Sequence


class CommandFailed(Exception):
    """A command cannot do what it was asked; the text is one readable line, `hints` say what to do."""

    def __init__(self, message: str, hints: Sequence[str] = (), exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hints = tuple(hints)
        self.exit_code = exit_code

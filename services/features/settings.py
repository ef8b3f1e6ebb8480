"""What the features service reads from the environment, beside what every service reads."""

from pydantic import PositiveFloat

from services.common.settings import CommonSettings


class Settings(CommonSettings):
    """Settings of the features service."""

    features_database_url: str = ""
    """SQLAlchemy URL of definitions and jobs, sqlite:///<file> or postgresql://<user>@<host>/<database>. Empty: a file in the state folder."""
    database_statement_timeout_s: PositiveFloat = 5.0
    """Longest that one statement, a lock or a free connection is waited for. Seconds."""
    definition_poll_s: PositiveFloat = 0.5
    """How often definitions applied through other features processes on the same database are looked for. Seconds."""

    @property
    def database(self) -> str:
        """URL of the database."""
        return self.features_database_url or f"sqlite:///{self.state_dir.absolute() / 'features' / 'features.db'}"

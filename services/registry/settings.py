"""What the registry reads from the environment, beside what every service reads."""

from datetime import timedelta
from typing import Annotated

from pydantic import Field, PositiveFloat

from services.common.settings import CommonSettings


class RegistrySettings(CommonSettings):
    """The registry's settings."""

    database_url: str = ""
    """SQLAlchemy URL, sqlite:///<file> or postgresql://<user>@<host>/<database>. Empty: a file in the state folder."""
    database_statement_timeout_s: PositiveFloat = 5.0
    """Longest that one statement, a lock or a free connection is waited for. Seconds."""
    artifact_url: str = ""
    """fsspec URL of the folder that content is stored in. Empty: a folder in the state folder."""
    artifact_least_free_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the disk that uploads leave free, 0 to 1."""
    upload_idle_timeout_s: PositiveFloat = 60.0
    """An upload without a message for so long ends. Seconds."""
    upload_retention_s: PositiveFloat = 7 * 24 * 3600.0
    """How long an upload that was cut off waits to be gone on with. Seconds."""
    change_retention_s: PositiveFloat = 24 * 3600.0
    """How long a watcher may be away and still resume without a snapshot. Seconds."""
    watch_heartbeat_s: PositiveFloat = 5.0
    """Longest silence of a watch stream. Seconds; watchers take three times the default for a broken connection."""
    watch_poll_s: PositiveFloat = 0.25
    """How often changes by other registry processes on the same database are looked for. Seconds."""
    housekeeping_interval_s: PositiveFloat = 60.0
    """How often leases, answers, changes and uploads that are past their time are removed. Seconds."""

    @property
    def database(self) -> str:
        """URL of the database."""
        return self.database_url or f"sqlite:///{self.state_dir.absolute() / 'registry' / 'registry.db'}"

    @property
    def artifacts(self) -> str:
        """URL of the store of content."""
        return self.artifact_url or f"file://{self.state_dir.absolute() / 'registry' / 'artifacts'}"

    @property
    def change_retention(self) -> timedelta:
        """How long a watcher may be away."""
        return timedelta(seconds=self.change_retention_s)

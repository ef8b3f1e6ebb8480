"""What the features service reads from the environment, beside what every service reads."""

from pydantic import PositiveFloat, PositiveInt

from services.common.settings import CommonSettings


class Settings(CommonSettings):
    """Settings of the features service."""

    features_database_url: str = ""
    """SQLAlchemy URL of definitions and jobs, sqlite:///<file> or postgresql://<user>@<host>/<database>. Empty: a file in the state folder."""
    database_statement_timeout_s: PositiveFloat = 5.0
    """Longest that one statement, a lock or a free connection is waited for. Seconds."""
    definition_poll_s: PositiveFloat = 0.5
    """How often definitions applied through other features processes on the same database are looked for. Seconds."""
    redis_url: str = ""
    """The online store: redis://, rediss://, unix:///<socket>, redis+sentinel://<host>:<port>,.../<service>[/<database>] or redis+cluster://<host>:<port>,... ; rediss+... for TLS. Empty: the socket of this machine's stack, in the state folder."""
    redis_read_deadline_s: PositiveFloat = 0.03
    """Longest that a read waits for the online store, for each 10,000 values that it reads. Seconds."""
    redis_write_deadline_s: PositiveFloat = 1.0
    """Longest that 1,000 rows may take to be written to the online store. Seconds."""
    redis_connect_timeout_s: PositiveFloat = 1.0
    """Longest that connecting to the online store may take. Seconds."""
    features_history_uri: str = ""
    """fsspec URI of the folder that holds the history, as Parquet. Empty: a folder in the state folder."""
    features_history_roll_s: PositiveFloat = 300.0
    """Age at which a part of the history's local log becomes Parquet. Seconds."""
    features_history_roll_mib: PositiveInt = 32
    """Size at which it does. MiB."""
    features_history_backlog_mib: PositiveInt = 1024
    """Size of the local log from which on pushes are refused, when Parquet cannot be written. MiB."""
    push_waiting_rows: PositiveInt = 50_000
    """Pushed rows that may wait to be made safe; more is refused. Rows."""

    @property
    def database(self) -> str:
        """URL of the database."""
        return self.features_database_url or f"sqlite:///{self.state_dir.absolute() / 'features' / 'features.db'}"

    @property
    def redis(self) -> str:
        """URL of the online store."""
        return self.redis_url or f"unix://{self.state_dir.absolute() / 'run' / 'redis.sock'}"

    @property
    def history(self) -> str:
        """URI of the history."""
        return self.features_history_uri or f"file://{self.state_dir.absolute() / 'features' / 'history'}"

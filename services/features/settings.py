"""What the features service reads from the environment, beside what every service reads."""

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from services.common.settings import CommonSettings
from services.features.domain.file_roots import FileRoots, wrong_form


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
    """Longest that a read waits for the online store, for each 2,500 values that it reads. Seconds."""
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

    features_connections: dict[str, str] = Field(default_factory=dict)
    """Databases that batch sources may name, as a JSON object of SQLAlchemy URLs by name; sqlite or postgresql."""
    features_file_roots: list[str] = Field(default_factory=list)
    """Folders under which batch sources and results of jobs may lie, as a JSON list of URIs: file:///<path>, s3://<bucket>/<path> or gs://. Empty: files in the state folder's features/files."""
    features_join_limit_mib: PositiveInt = 256
    """Most rows that one JoinFeatures may bring. MiB."""
    features_join_idle_timeout_s: PositiveFloat = 60.0
    """A JoinFeatures without a message for so long ends. Seconds."""
    offline_parallelism: PositiveInt = 2
    """Joins and jobs that one process works on at a time, each in a child process; more wait. Count."""
    offline_memory_mib: PositiveInt = 2048
    """Memory of DuckDB in each of them; what is more goes to the disk. MiB."""
    offline_spill_mib: PositiveInt = 65_536
    """Disk that each of them may use for that, in the state folder. MiB."""
    offline_threads: NonNegativeInt = 0
    """Threads of each of them; 0 is as many as the process has processors, by affinity and cgroup. Count."""
    job_lease_s: PositiveFloat = 15.0
    """How long a job belongs to a process that does not say that it is alive. Seconds."""
    job_poll_s: PositiveFloat = 1.0
    """How often jobs that another process let go, or that wait, are looked for. Seconds."""

    @field_validator("features_file_roots")
    @classmethod
    def _sound(cls, roots: list[str]) -> list[str]:
        for root in roots:
            if want := wrong_form(root):
                raise ValueError(f"{want}, got {root!r}")
        return roots

    @property
    def file_roots(self) -> FileRoots:
        """Where files of callers may lie."""
        return FileRoots(self.features_file_roots or [f"file://{self.state_dir.absolute() / 'features' / 'files'}"])

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

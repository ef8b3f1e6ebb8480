"""The registry's resources, by name: models, versions, environments, deployments, routes.

All are immutable values; a change makes a new one. Times are UTC. An etag changes with every change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Final, TypeVar

from services.common import names
from services.registry.domain.bucket import Ranges

DEFAULT_ENVIRONMENT: Final = "production"
FIRST_ENVIRONMENTS: Final = {
    "dev": "Where models are tried out",
    "staging": "Where models are checked before they serve",
    "production": "Where models serve",
}
DEFAULT_POOL: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What is common to all versions of a model; `aliases` holds version ids, `latest_version` one or nothing."""

    name: str
    description: str = ""
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    latest_version: str = ""
    create_time: datetime
    update_time: datetime
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One immutable version.

    `document` is the contract's message as it was checked and accepted; the domain carries it and does not look inside.
    `digest` is SHA-256 over what decides its answers. `fetched_features` are those that do not come with the request.
    """

    name: str
    semantic_version: str
    digest: str
    fetched_features: tuple[str, ...]
    creator: str
    create_time: datetime
    document: bytes = field(repr=False)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.name.rsplit("/", 2)[0]

    @property
    def version_id(self) -> str:
        """Decimal id, from 1."""
        return self.name.rsplit("/", 1)[1]


@dataclass(frozen=True, slots=True)
class FeatureBinding:
    """Says that a version fetches a feature; `spec` is the contract's message, as in the version's document."""

    model_version: str
    feature: str
    view: str
    spec: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A place where models serve."""

    name: str
    description: str = ""
    create_time: datetime


class DeviceClass(Enum):
    """Kind of device that a deployment runs on."""

    CPU = "CPU"
    GPU = "GPU"


class ModelPlacement(Enum):
    """Where a model runs: in processes of its own, in the replica's, or in one with other small versions."""

    PROCESS = "PROCESS"
    INLINE = "INLINE"
    SHARED = "SHARED"


class NonFinitePolicy(Enum):
    """What happens to a request with NaN or an infinity in its tensors."""

    PASS = "PASS"  # noqa: S105 - a word of the contract
    REFUSE = "REFUSE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How requests are joined into batches, processes kept and values judged; 0, empty and None mean inference's default."""

    max_batch_size: int = 0
    max_delay: timedelta | None = None
    batch_sizes: tuple[int, ...] = ()
    latency_target: timedelta | None = None
    max_queue_rows: int = 0
    max_queue_bytes: int = 0
    ageing: timedelta | None = None
    max_batch_time: timedelta | None = None
    instances: int = 0
    memory_limit_bytes: int = 0
    length_buckets: tuple[int, ...] = ()
    placement: ModelPlacement | None = None
    non_finite: NonFinitePolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A version that should be loaded by a pool.

    `pending_weight` is the share of the traffic, in basis points, that it gets once it is READY; None: none, or it has
    been given. No two have the same `create_time`: it orders them by age. `feature_view_digests` are
    those of the views that the version fetches from, by view id, as they were when it was deployed.
    """

    name: str
    model_version: str
    environment: str
    pool: str
    replicas: int
    device_class: DeviceClass
    batching: Batching | None
    pending_weight: int | None
    creator: str
    create_time: datetime
    update_time: datetime
    etag: str
    feature_view_digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.model_version.rsplit("/", 2)[0]

    @property
    def route(self) -> str:
        """Name of the route that may give it traffic."""
        return names.ROUTE.format(self.model.removeprefix("models/"), self.environment)


@dataclass(frozen=True, slots=True)
class Variant:
    """One arm of a route: what answers which buckets; the weight is the number of buckets."""

    name: str
    deployment: str
    weight: int
    buckets: Ranges = ()


class FeatureFailurePolicy(Enum):
    """What happens when features cannot be fetched."""

    DEFAULTS = "DEFAULTS"
    FALLBACK = "FALLBACK"
    REFUSE = "REFUSE"


@dataclass(frozen=True, slots=True)
class FallbackRung:
    """What answers instead: a deployment, or, when that is empty, a fixed class index or number."""

    deployment: str = ""
    static_prediction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The traffic policy of a model in an environment; weights add up to 10,000.

    `feature_failure_policy` None: as the signature says for each feature. Redacted features never leave the router.
    """

    name: str
    variants: tuple[Variant, ...]
    salt: str
    fallback: tuple[FallbackRung, ...] = ()
    feature_failure_policy: FeatureFailurePolicy | None = None
    redacted_features: tuple[str, ...] = ()
    create_time: datetime
    update_time: datetime
    etag: str

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.name.rsplit("/", 2)[0]

    @property
    def environment(self) -> str:
        """Id of the environment."""
        return self.name.rsplit("/", 1)[1]


Resource = Model | ModelVersion | Environment | Deployment | Route
ResourceT = TypeVar("ResourceT", Model, ModelVersion, Environment, Deployment, Route)

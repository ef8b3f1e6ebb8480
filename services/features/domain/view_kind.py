"""Which code reads and writes a view: the one place that knows all kinds."""

from collections.abc import Sequence

from services.features.domain.aggregate_view import AggregateReader, AggregateWriter
from services.features.domain.catalog import CompiledFeature, CompiledView
from services.features.domain.definitions import AggregateSource, BatchSource, OnDemandSource, PushSource
from services.features.domain.on_demand_view import OnDemandReader
from services.features.domain.plain_view import PlainReader, PlainWriter
from services.features.domain.ports import ViewReader, ViewWriter


def make_reader(view: CompiledView, features: Sequence[CompiledFeature]) -> ViewReader:
    """Return the reader of some features of a view, each once."""
    match view.definition.source:
        case PushSource() | BatchSource():
            return PlainReader(view, features)
        case AggregateSource():
            return AggregateReader(view, features)
        case OnDemandSource():
            return OnDemandReader(view, features)
    raise TypeError(f"nothing reads a view with the source {type(view.definition.source).__name__}")


def make_writer(view: CompiledView) -> ViewWriter | None:
    """Return the writer of a view; None for one that keeps nothing, because it is computed on demand."""
    match view.definition.source:
        case PushSource() | BatchSource():
            return PlainWriter(view)
        case AggregateSource():
            return AggregateWriter(view)
    return None

"""What this router serves, for those who ask about models instead of asking them."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.router.domain.ports import Inference
from services.router.domain.prediction import RoutingTable
from services.router.domain.routing import RoutedModel, Target


@dataclass(frozen=True, slots=True)
class VersionState:
    """One deployed version and whether some replica can run it now."""

    target: Target
    ready: bool


class Catalog:
    """Answers about models, versions and readiness."""

    def __init__(self, table: RoutingTable, inference: Inference) -> None:
        self._table = table
        self._inference = inference

    def configured(self) -> bool:
        """Whether the router has had a configuration."""
        return self._table.applied

    def ready(self) -> bool:
        """Whether there is a configuration and, where anything is routed, some of it can run.

        One model that cannot be loaded must not take the router out of its load balancer.
        """
        if not self._table.applied:
            return False
        targets = [target for model in self._table.current.models.values() for target in model.routed()]
        return not targets or any(self._inference.is_ready(target) for target in targets)

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a deployed version, or every routed one when none is named, can run; raises when unknown."""
        routed = self._table.current.model(model)
        targets = (routed.pinned(version),) if version else routed.routed()
        return bool(targets) and all(self._inference.is_ready(target) for target in targets)

    def describe(self, model: str, version: str) -> tuple[RoutedModel, Target]:
        """Return a model and its named version, or the one with the largest share; raises when unknown."""
        routed = self._table.current.model(model)
        if version:
            return routed, routed.pinned(version)
        targets = routed.routed()
        # A route whose deployments are all unknown: the pin of nothing says what is wrong.
        return routed, targets[0] if targets else routed.pinned(version)

    def states(self, *, ready_only: bool) -> Sequence[VersionState]:
        """Return every deployed version with its readiness, by model and ascending version."""
        models = self._table.current.models
        found = [
            VersionState(target, self._inference.is_ready(target))
            for model in sorted(models)
            for target in models[model].deployed()
        ]
        return [state for state in found if state.ready or not ready_only]

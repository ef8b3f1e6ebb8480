"""Where the online store keeps the values of an entity: one Redis key for each view and tuple of entity keys.

`f:<view>:<generation>:<key>[:<key>...]`; "%" and ":" in an entity's key are written %25 and %3A, so two tuples never
share a key. There is no hash tag in it: a cluster spreads entities by the whole key, and every script takes one key.
"""

from collections.abc import Mapping, Sequence

from services.features.domain.catalog import CompiledView


class KeySpace:
    """Makes the Redis keys of one view."""

    __slots__ = ("_entities", "_only", "prefix")

    def __init__(self, view: CompiledView) -> None:
        self.prefix = f"f:{view.id}:{view.generation}:".encode()
        """What all keys of the view begin with, and no other view's do."""
        self._entities = tuple(entity.id for entity in view.entities)
        self._only = self._entities[0] if len(self._entities) == 1 else None

    def of(self, keys: Sequence[str]) -> bytes:
        """Return the Redis key for entity keys in the order of the view's entities."""
        text = ":".join(keys) if len(keys) > 1 else keys[0]
        if "%" in text or text.count(":") != len(keys) - 1:
            text = ":".join([key.replace("%", "%25").replace(":", "%3A") for key in keys])
        return self.prefix + text.encode()

    def of_row(self, keys: Mapping[str, str]) -> bytes:
        """Return the Redis key for entity keys by entity id; other entities in it do not matter."""
        if self._only is not None:
            return self.of((keys[self._only],))
        return self.of([keys[entity] for entity in self._entities])

"""What is seen of the models that a goal is about: frozen views, made into what decisions read."""

from __future__ import annotations

from collections.abc import Iterable

from modelops.api.errors import NotFound
from modelops.goals.values import ModelSeen
from modelops.serving.catalog import Catalog
from modelops.serving.placement import MB
from modelops.serving.pool import Pool


class Observer:
    """Looks at models; changes nothing, and asks nobody."""

    def __init__(self, catalog: Catalog, pool: Pool) -> None:
        self._catalog = catalog
        self._pool = pool

    def __call__(self, names: Iterable[str]) -> dict[str, ModelSeen]:
        """The models as they stand, by their names."""
        return {name: self._model(name) for name in names}

    def _model(self, name: str) -> ModelSeen:
        try:
            active, view = self._catalog.active(name), self._pool.view(name)
        except NotFound:
            return ModelSeen(name, registered=False)
        return ModelSeen(
            name,
            version=active.label,
            status=view.status,
            serving=view.version.label if view.engine_pid else "",
            message=view.message,
            failures=view.breaker.failures,
            memory_mb=sum(view.memory.values()) // MB,
        )

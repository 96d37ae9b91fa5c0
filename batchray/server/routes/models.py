"""The route of the models that agents may use."""

from __future__ import annotations

from typing import Literal

from aiohttp import web

from batchray.schema import Model
from batchray.schema.base import WireModel
from batchray.server.agent_catalog import AgentCatalog
from batchray.server.routing import ResponseBody, Route


class ModelsQuery(WireModel):
    """Query of models: those of some provider.  All models are the operator's, which Letta's category is `base`."""

    provider_category: tuple[Literal["base", "byok"], ...] = ()
    provider_name: str | None = None
    provider_type: str | None = None

    def matches(self, model: Model) -> bool:
        """Return whether a model passes the filters."""
        is_of_provider = self.provider_name in (None, model.provider_name)
        return (
            is_of_provider
            and self.provider_type in (None, model.provider_type)
            and (not self.provider_category or "base" in self.provider_category)
        )


class ModelRoutes:
    """The endpoint that lists the models."""

    def __init__(self, catalog: AgentCatalog) -> None:
        self._catalog = catalog

    def routes(self) -> list[Route]:
        """Return the route."""
        return [
            Route(
                "GET",
                "/v1/models/",
                self.index,
                "list_models",
                "List models",
                ModelsQuery,
                response=list[Model],
                tag="models",
            )
        ]

    async def index(self, request: web.Request, query: ModelsQuery) -> ResponseBody:
        """List the models that agents may use."""
        return [*filter(query.matches, self._catalog.models())]

"""The routes of models: those that agents may use, as Letta has them, and the agents, as OpenAI has models."""

from __future__ import annotations

import time
from functools import partial
from typing import Literal

from aiohttp import web

from batchray.schema import Model
from batchray.schema.base import WireModel
from batchray.schema.openai_models import OpenAIModel, OpenAIModelList
from batchray.server.absent import absence_of
from batchray.server.agent_catalog import AgentCatalog, AgentLookup
from batchray.server.auth import user_of
from batchray.server.errors import NO_RETRY, HttpError
from batchray.server.openai_errors import OpenAIErrorBody
from batchray.server.openai_views import seconds
from batchray.server.routing import NoQuery, ResponseBody, Route

_OPERATOR = "operator"


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
    """The endpoints of models.

    Letta's clients ask `/v1/models/` and OpenAI's `/v1/models`; OpenAI's list has the agents, which `/v1/batches` takes
    as models.  The operator's agents count as created when the server started.
    """

    def __init__(self, catalog: AgentCatalog, agents: AgentLookup) -> None:
        self._catalog, self._agents = catalog, agents
        self._started_at = int(time.time())

    def routes(self) -> list[Route]:
        """Return the routes."""
        of_openai = partial(Route, error_body=OpenAIErrorBody, tag="openai")
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
            ),
            of_openai(
                "GET",
                "/v1/models",
                self.openai_index,
                "list_openai_models",
                "List agents as models",
                response=OpenAIModelList,
            ),
            of_openai(
                "GET",
                "/v1/models/{model}",
                self.retrieve,
                "retrieve_openai_model",
                "Retrieve an agent as a model",
                response=OpenAIModel,
                errors=(404,),
            ),
        ]

    async def index(self, request: web.Request, query: ModelsQuery) -> ResponseBody:
        """List the models that agents may use."""
        return [*filter(query.matches, self._catalog.models())]

    async def openai_index(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """List the agents that a user may ask, the operator's first."""
        return OpenAIModelList(data=[*(await self._models(user_of(request))).values()])

    async def retrieve(self, request: web.Request, query: NoQuery) -> ResponseBody:
        """Return one agent as a model."""
        name = request.match_info["model"]
        if (found := (await self._models(user_of(request))).get(name)) is not None:
            return found
        if (absence := absence_of(request.path)) is not None:
            raise HttpError(404, absence)
        sentence = f"The model '{name[:60]}' does not exist; GET /v1/models lists the agents that a batch may name."
        raise HttpError(404, sentence, NO_RETRY, {"param": "model", "code": "model_not_found"})

    async def _models(self, user_id: str) -> dict[str, OpenAIModel]:
        times = await self._agents.creation_times(user_id)
        return {agent_id: self._model(agent_id, created_at, user_id) for agent_id, created_at in times.items()}

    def _model(self, agent_id: str, created_at: str | None, user_id: str) -> OpenAIModel:
        created = seconds(created_at)
        if created is None:
            return OpenAIModel(id=agent_id, created=self._started_at, owned_by=_OPERATOR)
        return OpenAIModel(id=agent_id, created=created, owned_by=user_id)

"""The parameters that models of the Messages API accept, and calls fitted to them.

Newer models decide by themselves how much to think, and refuse a budget for it and `temperature`, `top_p`, `top_k`;
older ones know only the budget.  `GET /v1/models/{id}` says which it is.  If a server has no such route, its refusal
of a call does.
Source: Anthropic's API reference, "Get a Model" and "Create a Message", as in its Python SDK 2.14
(`types/model_capabilities.py`, `types/thinking_types.py`); the refusals as public reports quote them.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

MAX_TOKENS = 4096
"""The reply limit if the agent sets none: the API requires one, and every model accepts this one."""
SAMPLING = frozenset({"temperature", "top_k", "top_p"})
"""Parameters of sampling."""
ENABLED, DISABLED, EFFORT = "thinking.type.enabled", "thinking.type.disabled", "output_config.effort"
"""Other parameters that a model may refuse: thinking with a budget, no thinking, an effort."""

_MIN_THINKING_TOKENS = 1024  # the API refuses a smaller budget, and a budget that leaves no tokens for the reply
_ADAPTIVE_MAX_TOKENS = 16_384  # thinking counts too, and every model that decides about it can write far more
_NOT_WITH_THINKING = frozenset({"temperature", "top_k"})  # the API refuses them together with thinking
# Words of an error that refuses a parameter as such.  An error about a value is the caller's to correct.
_REFUSAL = re.compile(
    r"deprecat|not support|unsupported|does not (accept|allow)|no longer|removed|incompatible|may only be set"
    r"|not (allowed|permitted|available|compatible)|cannot (both )?be (specified|set|used)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ModelRules:
    """The parameters that a model refuses, as far as known, and whether it decides by itself how much to think."""

    refused: frozenset[str] = frozenset()
    is_adaptive: bool = False

    @classmethod
    def of_model_info(cls, info: Any) -> ModelRules:
        """Read the answer of `GET /v1/models/{id}`.  Facts that it leaves out stay unknown."""
        types = _at(info, "capabilities", "thinking", "types")
        is_adaptive, takes_budget = _supported(types, "adaptive") is True, _supported(types, "enabled")
        refused = set[str]()
        if takes_budget is False:
            refused.add(ENABLED)
        if is_adaptive and takes_budget is False:  # the models that refuse a budget are those that refuse sampling
            refused |= SAMPLING
        if _supported(types, "disabled") is False:
            refused.add(DISABLED)
        if _supported(_at(info, "capabilities"), "effort") is False:
            refused.add(EFFORT)
        return cls(frozenset(refused), is_adaptive)

    def after_refusal(self, message: str, body: Mapping[str, Any]) -> ModelRules | None:
        """Return the rules that an error about this body adds to; None if it refuses no parameter that is in it."""
        if not _REFUSAL.search(message):
            return None
        kind = thinking_type(body)
        if kind == "enabled" and re.search(r"thinking\.type\.enabled|budget_tokens|thinking\.adaptive", message):
            return ModelRules(self.refused | {ENABLED}, is_adaptive=True)
        if kind == "disabled" and re.search(r"thinking\.type\.disabled|thinking", message):
            return ModelRules(self.refused | {DISABLED}, self.is_adaptive)
        if "effort" in message and "effort" in (body.get("output_config") or {}):
            return ModelRules(self.refused | {EFFORT}, self.is_adaptive)
        named = [name for name in re.findall(r"\b(?:temperature|top_p|top_k)\b", message) if name in body]
        # "`temperature` and `top_p` cannot both be specified" keeps the first.
        return ModelRules(self.refused | {named[-1]}, self.is_adaptive) if named else None


NOTHING_KNOWN = ModelRules()
"""The rules of a model before anything is known: those of older models."""


def needs_rules(body: Mapping[str, Any], thinking: bool | None) -> bool:
    """Whether what a model accepts makes a difference to this call."""
    return thinking is not None or not SAMPLING.isdisjoint(body) or "thinking" in body


def fitted(body: Mapping[str, Any], thinking: bool | None, rules: ModelRules) -> dict[str, Any]:
    """Return a body as the model accepts it, with thinking switched on or off; None leaves that as it is.

    `body` has the fields of the agent's file; a limit of the answer that it leaves out is not set here, except for
    thinking, which counts too.
    """
    fitted = _with_thinking(dict(body), thinking, rules)
    if ENABLED in rules.refused and thinking_type(fitted) == "enabled":
        kept = {name: value for name, value in fitted["thinking"].items() if name != "budget_tokens"}
        fitted["thinking"] = {**kept, "type": "adaptive"}
    if DISABLED in rules.refused and thinking_type(fitted) == "disabled":
        del fitted["thinking"]
    if EFFORT in rules.refused and "effort" in (fitted.get("output_config") or {}):
        fitted["output_config"] = {name: each for name, each in fitted["output_config"].items() if name != "effort"}
        if not fitted["output_config"]:
            del fitted["output_config"]
    return {name: value for name, value in fitted.items() if name not in rules.refused}


def changes(body: Mapping[str, Any], thinking: bool | None, rules: ModelRules) -> list[str]:
    """Return, in words, what `fitted` changes because the model refuses it."""
    said = [f"{name} is left out" for name in sorted(SAMPLING & rules.refused) if name in body]
    kind = thinking_type(body) if thinking is None or thinking_type(body) == "enabled" else None
    if kind == "enabled" and ENABLED in rules.refused and thinking is not False:
        said.append("thinking with a budget becomes adaptive thinking")
    if DISABLED in rules.refused and (kind == "disabled" or thinking is False):
        said.append("its thinking cannot be switched off")
    if EFFORT in rules.refused and "effort" in (body.get("output_config") or {}):
        said.append("output_config.effort is left out")
    return said


class KnownModels:
    """The rules of the models that one client calls: each is asked for once, and refusals add to them.

    `fetch` returns the answer of `GET /v1/models/{id}`, or None; it raises nothing.  `provider` is named in warnings.
    """

    def __init__(self, provider: str, fetch: Callable[[str], Awaitable[Any]]) -> None:
        self._provider, self._fetch = provider, fetch
        self._rules: dict[str, ModelRules] = {}
        self._questions: dict[str, asyncio.Task[None]] = {}
        self._warned: set[tuple[str, str]] = set()

    async def rules_for(self, model: str, body: Mapping[str, Any], thinking: bool | None, wait_s: float) -> ModelRules:
        """Return what is known of a model, after at most `wait_s` seconds of waiting for the provider's answer.

        The provider is asked only if the answer makes a difference to this call.
        """
        if needs_rules(body, thinking):
            if model not in self._questions:
                self._questions[model] = asyncio.create_task(self._ask(model))
            if not self._questions[model].done():
                await asyncio.wait([self._questions[model]], timeout=max(0.0, wait_s))
        rules = self._rules.get(model, NOTHING_KNOWN)
        if rules.refused:
            self._warn(model, changes(body, thinking, rules))
        return rules

    def learn(self, model: str, used: ModelRules, message: str, sent: Mapping[str, Any]) -> bool:
        """Add what the refusal of a body says; return whether a body of other rules than `used` may be accepted."""
        learned = used.after_refusal(message, sent)
        if learned is None or learned == used:
            return False
        self._add(model, learned)
        return True

    async def close(self) -> None:
        """Stop asking."""
        for question in self._questions.values():
            question.cancel()
        await asyncio.gather(*self._questions.values(), return_exceptions=True)

    async def _ask(self, model: str) -> None:
        self._add(model, ModelRules.of_model_info(await self._fetch(model)))

    def _add(self, model: str, rules: ModelRules) -> None:
        known = self._rules.get(model, NOTHING_KNOWN)
        self._rules[model] = ModelRules(known.refused | rules.refused, known.is_adaptive or rules.is_adaptive)

    def _warn(self, model: str, said: list[str]) -> None:
        for change in said:
            if (model, change) not in self._warned:
                self._warned.add((model, change))
                logger.warning("provider %s: the model %s does not take this: %s", self._provider, model, change)


def thinking_type(body: Mapping[str, Any]) -> str | None:
    """Return the type of a body's `thinking`; None if it has none."""
    thinking = body.get("thinking")
    return thinking.get("type") if isinstance(thinking, dict) else None


def _with_thinking(body: dict[str, Any], thinking: bool | None, rules: ModelRules) -> dict[str, Any]:
    if thinking is None:
        return body
    if not thinking:
        rest = {name: value for name, value in body.items() if name != "thinking"}
        # Some of the models that decide by themselves think unless they are told not to.
        return {**rest, "thinking": {"type": "disabled"}} if rules.is_adaptive else rest
    if thinking_type(body) not in (None, "disabled"):
        return body
    body = {name: value for name, value in body.items() if name not in _NOT_WITH_THINKING}
    if rules.is_adaptive:
        return {"max_tokens": _ADAPTIVE_MAX_TOKENS, **body, "thinking": {"type": "adaptive"}}
    return _with_budget(body)


def _with_budget(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body whose thinking gets half of the answer's tokens."""
    limit = body.get("max_tokens", MAX_TOKENS)
    budget = max(_MIN_THINKING_TOKENS, limit // 2)
    max_tokens = max(limit, budget + _MIN_THINKING_TOKENS)
    return {**body, "max_tokens": max_tokens, "thinking": {"type": "enabled", "budget_tokens": budget}}


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _supported(capabilities: Any, name: str) -> bool | None:
    return _at(capabilities, name, "supported")  # type: ignore[no-any-return]

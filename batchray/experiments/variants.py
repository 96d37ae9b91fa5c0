"""Variants of an agent: one for each combination of values of its fields."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

from batchray.config import Agent
from batchray.errors import ConfigError
from batchray.schema.keys import did_you_mean

_MAX_LABEL_CHARS = 40


def variants(agent: Agent | Mapping[str, Any], /, **values: Collection[Any]) -> list[Agent]:
    """Return an agent for each combination of values of its fields, in the order given, the last field fastest.

    Each value of a list, or of a mapping of labels to values, gives a variant: `variants(agent, model=["openai/a",
    "openai/b"], system={"short": "Answer in one word.", "long": "Explain."})` returns four.  The id of a variant is
    that of the agent with the labels, `qa[model=openai/a, system=short]`; its `labels` have them by field, for
    `compare`.  A short value is its own label, a function has its name, anything else has its position, from 1.

    Raises ConfigError for an unknown field, for no values or one value twice, and for a variant that is not valid.
    """
    given = Agent(**agent) if isinstance(agent, Mapping) else agent
    factors = {name: _labelled(name, choices) for name, choices in values.items()}
    return [
        _variant(given, dict(zip(factors, combination, strict=True)))
        for combination in itertools.product(*(labelled.items() for labelled in factors.values()))
    ]


def _labelled(name: str, choices: Collection[Any]) -> dict[str, Any]:
    """Return the values of a field by label."""
    if name not in Agent.model_fields or name in ("id", "labels"):
        raise ConfigError(f"variants: an agent has no field {name!r} to vary{did_you_mean(name, Agent)}")
    if isinstance(choices, str | bytes) or not isinstance(choices, Collection):
        kind = type(choices).__name__
        raise ConfigError(f"variants: {name} is a list of values, or a mapping of labels to values, not {kind}")
    if hasattr(choices, "tolist"):  # an array of numpy, a series of pandas
        choices = choices.tolist()
    if not choices:
        raise ConfigError(f"variants: {name} has no values; leave it out or give at least one")
    is_named = isinstance(choices, Mapping)
    labels = [str(each) if is_named else _label(position, each) for position, each in enumerate(choices, 1)]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"variants: {name} has {twice!r} twice; a mapping of labels to values tells them apart")
    return dict(zip(labels, choices.values() if isinstance(choices, Mapping) else choices, strict=True))


def _label(position: int, value: Any) -> str:
    if callable(value):
        return getattr(value, "__name__", None) or type(value).__name__
    is_short = isinstance(value, str | int | float | None) and len(str(value)) <= _MAX_LABEL_CHARS
    return str(value) if is_short and str(value).isprintable() else str(position)


def _variant(agent: Agent, chosen: Mapping[str, tuple[str, Any]]) -> Agent:
    labels = {name: label for name, (label, _) in chosen.items()}
    described = ", ".join(f"{name}={label}" for name, label in labels.items())
    fields = {name: getattr(agent, name) for name in agent.model_fields_set}
    fields.update({name: value for name, (_, value) in chosen.items()})
    return Agent(
        **{
            **fields,
            "id": f"{agent.id}[{described}]" if described else agent.id,
            "labels": {**agent.labels, **labels},
        }
    )

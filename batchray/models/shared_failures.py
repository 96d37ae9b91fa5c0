"""Failures that every request of a provider meets: a wrong key, an unknown model, an empty account."""

from __future__ import annotations

import re

from batchray.models.provider_errors import ProviderError

_STATUSES = frozenset({401, 402, 403, 404})
_CODES = frozenset(
    {
        "access_terminated",
        "account_deactivated",
        "authentication_error",
        "billing_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "budget_exceeded",
        "insufficient_quota",
        "invalid_api_key",
        "model_not_found",
        "permission_error",
    }
)
# Statuses and codes of a bad request (400) that only the words tell apart: Anthropic's empty account, Google's and
# xAI's wrong key, and the unknown model of DeepSeek and LiteLLM.
_WORDS = re.compile(
    r"credit balance is too low|api[ _]key (?:is )?(?:not valid|invalid|expired)|incorrect api key"
    r"|model not exist|invalid model name|budget has been exceeded",
    re.IGNORECASE,
)
# A request that moderation refuses, which OpenRouter and others report as 403.
_OWN_WORDS = re.compile(r"moderation|flagged|content.?(?:policy|filter)|safety", re.IGNORECASE)

# OpenAI: "Request too large for gpt-4 ... on tokens per min (TPM): Limit 30000, Requested 42000."
_TOO_LARGE = re.compile("request too large", re.IGNORECASE)


def is_shared(status: int, error: ProviderError) -> bool:
    """Return whether a final refusal concerns all requests to the provider, and not only the content of this one."""
    if error.codes & _CODES or _WORDS.search(error.message):
        return True
    return status in _STATUSES and not error.is_too_long and not _OWN_WORDS.search(error.message)


def exceeds_quota_alone(status: int, error: ProviderError) -> bool:
    """Return whether a 429 is final: this request has more tokens than its account may use in a minute."""
    return status == 429 and _TOO_LARGE.search(error.message) is not None

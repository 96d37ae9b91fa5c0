"""Callbacks: one signed POST at a job's end, at least once, to public addresses only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from batchray.callbacks.base import CallbackResponse, Delivery, DeliveryAttempt, Outbox
from batchray.callbacks.guard import AddressGuard
from batchray.callbacks.sender import DELAYS_S, CallbackSender, Schedule
from batchray.callbacks.webhook import Signer, payload_of

__all__ = [
    "DELAYS_S",
    "AddressGuard",
    "CallbackResponse",
    "CallbackSender",
    "Delivery",
    "DeliveryAttempt",
    "Outbox",
    "Schedule",
    "Signer",
    "make_sender",
    "payload_of",
]


def make_sender(
    outbox: Outbox,
    *,
    secrets: Iterable[str] = (),
    allowed_networks: Iterable[str] = (),
    delays_s: Sequence[float] = DELAYS_S,
) -> CallbackSender:
    """Build the sender of an outbox from the operator's settings; await its `run`, and `close` it.

    Raises ConfigError for secrets, networks or delays that cannot be used.
    """
    from batchray.callbacks.transport import WebhookTransport  # aiohttp loads only where callbacks are sent

    transport = WebhookTransport(AddressGuard(allowed_networks))
    return CallbackSender(outbox, transport, signer=Signer(secrets), schedule=Schedule(tuple(delays_s)))

"""Callbacks: a signed POST when a job ends, delivered at least once, to public addresses only.

Owns the schedule of attempts, the signature, and the check of addresses.  The rows to send come through the `Outbox`
protocol, so this package knows nothing of the store.  Invariants:

- A delivery keeps its `webhook-id` over all attempts; a receiver uses it to ignore repetitions.
- No connection is made to an address that the guard did not check at the moment of connecting.
- Neither a log nor a recorded error contains the URL, which may hold a password.

Start reading at `sender` (when to send), then `transport` and `guard` (how), `webhook` (the body and its signature).
"""

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
    """Build a sender from the operator's settings; await its `run`, then `close` it.

    Raises ConfigError for invalid secrets, networks or delays.
    """
    from batchray.callbacks.transport import (
        WebhookTransport,  # here, so that aiohttp is loaded only if callbacks are sent
    )

    transport = WebhookTransport(AddressGuard(allowed_networks))
    return CallbackSender(outbox, transport, signer=Signer(secrets), schedule=Schedule(tuple(delays_s)))

"""State that agents keep from one request to the next: conversations, pending approvals and memory.

A run with a pending approval is answered by one item, which claims the approval before it is spawned.  The claim holds
across crashes and restarts.  It is released only if that item does not succeed: then the approval is pending again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from typing import Any

import orjson
import sqlalchemy as sa

from batchray.errors import ApprovalError
from batchray.schema import index_of, is_message_id, ordinal_of
from batchray.schema.approvals import check_all_answered
from batchray.store.agent_records import ConversationState, ConversationUpdate, HistoryItem, HistoryPlace
from batchray.store.database import Database, chunks
from batchray.store.leases import Leases
from batchray.store.memory import apply_memory_edits, load_blocks, load_memory, set_memory
from batchray.store.queries import starts_with
from batchray.store.records import JobRecord, LedJob, NewOutcome
from batchray.store.tables import (
    DELETED,
    HAS_FAILED,
    agent_turns,
    conversations,
    items,
    jobs,
    memory_blocks,
    outcomes,
    pending_approvals,
    pending_calls,
    same_item,
)
from batchray.store.turns import end_turns, take_turn


class Conversations:
    """Conversations, pending approvals and memory of agents.  Each user has their own."""

    def __init__(self, database: Database, leases: Leases) -> None:
        self._database, self._leases = database, leases

    def load(
        self,
        job: LedJob,
        index: int,
        agent_id: str,
        *,
        is_stateful: bool,
        answered: Set[str] | None = None,
        request_id: str | None = None,
        block_ids: Collection[str] = (),
    ) -> ConversationState | None:
        """Return the conversation and memory that an item continues from, and claim the approval that it answers.

        None if another job has the turn of a stateful agent: ask again.  The turn ends with the item's outcome.

        `answered` are the ids of the tool calls that the item answers, or the id of an approval request alone; None if
        it answers nothing.  `request_id` names the approval request if several runs wait for calls of the same ids.
        `block_ids` are the ids of the agent's stored blocks, which the result holds as they are now.
        Raises ApprovalError if no run waits for exactly these answers, or the agent must be answered first, and
        LeaseLostError if another process leads the job now.
        """
        with self._database.transaction() as connection:
            self._leases.check(connection, job)
            if is_stateful and not take_turn(self._database, connection, job, index, agent_id):
                return None
            approval = None
            if answered is not None:
                approval = _claimed(connection, job, index, agent_id, answered, request_id)
            found = load_blocks(connection, job.user_id, block_ids)
            if is_stateful:
                _check_last_item(connection, job, index, agent_id, approval)
                memory = {} if block_ids else load_memory(connection, job.user_id, agent_id)
                return ConversationState(_conversation(connection, job.user_id, agent_id), memory, found)
            if approval is None:
                return ConversationState((), {}, found)
            history = _history_before_approval(connection, approval.job, approval.idx)
            return ConversationState(history, orjson.loads(approval.memory), found)

    def places(self, user_id: str, agent_id: str) -> list[HistoryPlace]:
        """Return the items of a stateful agent's conversation, oldest first, without reading their messages."""
        with self._database.reading() as connection:
            return _places(connection, user_id, agent_id)

    def history(self, user_id: str, agent_id: str) -> list[HistoryItem]:
        """Return the items of a stateful agent's conversation, oldest first."""
        with self._database.reading() as connection:
            return _conversation(connection, user_id, agent_id)

    def items_at(self, places: Iterable[HistoryPlace]) -> list[HistoryItem]:
        """Return items of conversations with their messages, in the order given; those deleted are left out."""
        places = list(places)
        found: dict[tuple[str, int], HistoryItem] = {}
        with self._database.reading() as connection:
            for chunk in chunks(places):
                keys = [(place.key, place.index) for place in chunk]
                query = _history_query().where(sa.tuple_(outcomes.c.job, outcomes.c.idx).in_(keys))
                items = (HistoryItem(*row) for row in connection.execute(query))
                found.update(((item.job_id, item.index), item) for item in items)
        return [found[key] for place in places if (key := (place.job_id, place.index)) in found]

    def memory(self, user_id: str, agent_id: str) -> dict[str, str]:
        """Return a stateful agent's edited memory blocks, by label."""
        with self._database.reading() as connection:
            return load_memory(connection, user_id, agent_id)

    def edit_memory(self, user_id: str, agent_id: str, label: str, value: str) -> None:
        """Set the value of a block of a stateful agent's settings."""
        with self._database.transaction() as connection:
            set_memory(connection, user_id, agent_id, label, value)

    def delete(self, user_id: str, agent_id: str, *, with_memory: bool = False) -> None:
        """Delete an agent's conversation and pending approvals, and with `with_memory` its memory."""
        tables = [conversations, pending_calls, pending_approvals]
        if with_memory:
            tables = [agent_turns, *tables, memory_blocks]  # the turn first, as `end_turns` says
        with self._database.transaction() as connection:
            for table in tables:
                connection.execute(sa.delete(table).where(table.c.user_id == user_id, table.c.agent_id == agent_id))


def apply_conversation_updates(connection: sa.Connection, job: JobRecord, taken: Sequence[NewOutcome]) -> None:
    """Write the conversation updates of outcomes, in the transaction that records the outcomes."""
    updates = [(outcome.index, update) for outcome in taken if (update := outcome.conversation_update) is not None]
    end_turns(connection, job, ((index, update.agent_id) for index, update in updates if update.is_stateful))
    succeeded = (outcome.conversation_update for outcome in taken if outcome.status == "succeeded")
    apply_memory_edits(connection, job, [update for update in succeeded if update is not None])
    for outcome in taken:
        if outcome.conversation_update is None:
            continue
        if outcome.status != "succeeded":
            _release(connection, job, pending_approvals.c.claimed_idx == outcome.index)
            continue
        if outcome.conversation_update.is_stateful:
            _append_to_conversation(connection, job, outcome, outcome.conversation_update.agent_id)
        if outcome.conversation_update.pending:
            _add_pending_approval(connection, job, outcome.index, outcome.conversation_update)


def release_claims(connection: sa.Connection, job: JobRecord) -> None:
    """Release this job's claims on pending approvals whose answering item did not succeed, and its turns of agents."""
    end_turns(connection, job)
    its_outcome = sa.and_(outcomes.c.job == job.key, outcomes.c.idx == pending_approvals.c.claimed_idx)
    _release(connection, job, sa.exists().where(its_outcome, HAS_FAILED))


def _release(connection: sa.Connection, job: JobRecord, which: sa.ColumnElement[bool]) -> None:
    claims = sa.and_(pending_approvals.c.claimed_job == job.key, which)
    connection.execute(sa.update(pending_approvals).where(claims).values(claimed_job=None, claimed_idx=None))


def _append_to_conversation(connection: sa.Connection, job: JobRecord, outcome: NewOutcome, agent_id: str) -> None:
    place = {"user_id": job.user_id, "agent_id": agent_id, "job": job.key, "idx": outcome.index}
    connection.execute(sa.insert(conversations).values(**place, n_messages=_n_messages(outcome.messages)))


def _n_messages(outputs: bytes) -> int | None:
    """Return how many messages an item has, those of its input included; None if it has no output that tells."""
    messages = orjson.loads(outputs)
    return ordinal_of(messages[-1]["id"]) + 1 if messages else None


def _add_pending_approval(
    connection: sa.Connection, job: JobRecord, index: int, conversation_update: ConversationUpdate
) -> None:
    owner = {"job": job.key, "idx": index, "user_id": job.user_id, "agent_id": conversation_update.agent_id}
    connection.execute(
        sa.insert(pending_approvals).values(**owner, memory=orjson.dumps(dict(conversation_update.memory)))
    )
    rows = [{**owner, "tool_call_id": call_id.encode()} for call_id in conversation_update.pending]
    connection.execute(sa.insert(pending_calls), rows)


def _claimed(
    connection: sa.Connection,
    job: JobRecord,
    index: int,
    agent_id: str,
    answered: Set[str],
    request_id: str | None,
) -> sa.Row[Any]:
    """Find the pending approval that these answers are for, and claim it for this item."""
    if len(answered) == 1 and is_message_id(min(answered)):
        request_id, answered = min(answered), frozenset()
    named = request_id or min(answered)
    found = connection.execute(_approvals_of(job.user_id, agent_id, answered, request_id)).all()
    if not found:
        raise ApprovalError("no_pending_approval", f"no tool call {named!r} of this agent waits for an answer")
    mine = [approval for approval in found if (approval.claimed_job, approval.claimed_idx) == (job.key, index)]
    waiting = mine or [approval for approval in found if approval.claimed_job is None]
    if answered:
        waiting = _covered(connection, waiting, answered)
    if len(waiting) > 1:
        reason = f"{len(waiting)} runs wait for a tool call {named!r}"
        raise ApprovalError("ambiguous_approval", f"{reason}; name the approval request in approval_request_id")
    if not waiting or not _claim(connection, waiting[0], job, index):
        raise ApprovalError("already_answered", f"another request has answered the tool call {named!r} already")
    return waiting[0]


def _approvals_of(user_id: str, agent_id: str, answered: Set[str], request_id: str | None) -> sa.Select[Any]:
    query = sa.select(pending_approvals).where(
        pending_approvals.c.user_id == user_id, pending_approvals.c.agent_id == agent_id
    )
    if request_id is not None:
        of_job = sa.select(jobs.c.job).where(starts_with(jobs.c.id, f"job-{request_id[8:32]}"))
        query = query.where(pending_approvals.c.job.in_(of_job), pending_approvals.c.idx == index_of(request_id))
    if answered:
        named = sa.select(pending_calls.c.job).where(
            same_item(pending_calls, pending_approvals),
            pending_calls.c.user_id == user_id,
            pending_calls.c.agent_id == agent_id,
            pending_calls.c.tool_call_id.in_([call_id.encode() for call_id in sorted(answered)]),
        )
        query = query.where(named.exists())
    return query


def _covered(connection: sa.Connection, waiting: list[sa.Row[Any]], answered: Set[str]) -> list[sa.Row[Any]]:
    """Return the approvals that wait for exactly these answers.  Raises ApprovalError if none of them does."""
    calls = [_calls_of(connection, approval) for approval in waiting]
    exact = [approval for approval, of_pause in zip(waiting, calls, strict=True) if set(of_pause) == answered]
    if waiting and not exact:
        check_all_answered(answered, calls[0])
    return exact


def _calls_of(connection: sa.Connection, approval: sa.Row[Any]) -> list[str]:
    query = sa.select(pending_calls.c.tool_call_id)
    query = query.where(pending_calls.c.job == approval.job, pending_calls.c.idx == approval.idx)
    return [call_id.decode() for call_id in connection.execute(query).scalars()]


def _claim(connection: sa.Connection, approval: sa.Row[Any], job: JobRecord, index: int) -> bool:
    """Claim a pending approval for this item; False if another process was faster."""
    this = sa.and_(pending_approvals.c.job == approval.job, pending_approvals.c.idx == approval.idx)
    mine = sa.and_(pending_approvals.c.claimed_job == job.key, pending_approvals.c.claimed_idx == index)
    claiming = sa.update(pending_approvals).where(this, sa.or_(pending_approvals.c.claimed_job.is_(None), mine))
    return connection.execute(claiming.values(claimed_job=job.key, claimed_idx=index)).rowcount > 0


def _check_last_item(
    connection: sa.Connection, job: JobRecord, index: int, agent_id: str, approval: sa.Row[Any] | None
) -> None:
    """Raise ApprovalError if a stateful agent waits for other answers than those of this item."""
    last = (
        sa.select(conversations.c.job, conversations.c.idx)
        .where(conversations.c.user_id == job.user_id, conversations.c.agent_id == agent_id)
        .order_by(conversations.c.seq.desc())
        .limit(1)
    )
    tail = connection.execute(last).first()
    if approval is not None and (tail is None or tuple(tail) != (approval.job, approval.idx)):
        raise ApprovalError("no_pending_approval", "the agent's conversation has continued since that tool call")
    if approval is None and tail is not None:
        query = sa.select(pending_approvals.c.job).where(
            pending_approvals.c.job == tail.job, pending_approvals.c.idx == tail.idx
        )
        if connection.execute(query).first() is not None:
            reason = "the agent waits for an answer to its tool calls; answer them first"
            raise ApprovalError("pending_approval", reason)


def _history_before_approval(connection: sa.Connection, job: int, index: int) -> list[HistoryItem]:
    """Return the item with the pending approval and the items that it continued from, oldest first."""
    history: list[HistoryItem] = []
    place: tuple[int, int] | None = (job, index)
    while place is not None:
        row = connection.execute(_history_query().where(outcomes.c.job == place[0], outcomes.c.idx == place[1])).first()
        if row is None:
            raise ApprovalError("no_pending_approval", "the run that waited has been deleted")
        history.append(HistoryItem(*row))
        claimed = sa.and_(pending_approvals.c.claimed_job == place[0], pending_approvals.c.claimed_idx == place[1])
        before = connection.execute(sa.select(pending_approvals.c.job, pending_approvals.c.idx).where(claimed)).first()
        place = (before.job, before.idx) if before else None
    return history[::-1]


def _places(connection: sa.Connection, user_id: str, agent_id: str) -> list[HistoryPlace]:
    columns = (jobs.c.job, jobs.c.id, conversations.c.idx, conversations.c.n_messages)
    query = sa.select(*columns).join(jobs, jobs.c.job == conversations.c.job).where(jobs.c.kind != DELETED)
    query = query.where(conversations.c.user_id == user_id, conversations.c.agent_id == agent_id)
    places = []
    for key, job_id, index, n_messages in connection.execute(query.order_by(conversations.c.seq)).all():
        n_present = _count_messages(connection, key, index) if n_messages is None else n_messages
        places.append(HistoryPlace(key, job_id, index, n_present))
    return places


def _count_messages(connection: sa.Connection, job: int, index: int) -> int:
    """Return how many messages an item has of which the conversation does not say it."""
    query = _history_query().where(outcomes.c.job == job, outcomes.c.idx == index)
    if (row := connection.execute(query).first()) is None:
        return 0
    item = HistoryItem(*row)
    request = orjson.loads(item.request)
    n_inputs = 1 if request.get("input") is not None else len(request.get("messages") or ())
    return n_inputs + len(orjson.loads(item.messages))


def _conversation(connection: sa.Connection, user_id: str, agent_id: str) -> list[HistoryItem]:
    here = sa.and_(conversations.c.user_id == user_id, conversations.c.agent_id == agent_id)
    query = _history_query().join(conversations, same_item(conversations, outcomes)).where(here)
    return [HistoryItem(*row) for row in connection.execute(query.order_by(conversations.c.seq))]


def _history_query() -> sa.Select[Any]:
    columns = (jobs.c.id, jobs.c.created_at, outcomes.c.idx, items.c.request, outcomes.c.messages)
    joined = outcomes.join(items, same_item(items, outcomes)).join(jobs, jobs.c.job == outcomes.c.job)
    return sa.select(*columns).select_from(joined).where(jobs.c.kind != DELETED)

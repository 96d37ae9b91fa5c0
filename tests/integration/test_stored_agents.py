"""Agents made over HTTP are found by their names, without a look at the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from batchray.store import DEFAULT_USER, Store
from batchray.store.tables import agents


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("database").new_url() if request.param == "postgres" else None
    with Store.open(tmp_path / "data", url) as opened:
        yield opened


def spec(name: str | None) -> dict[str, object]:
    return {"given": {"name": name}, "agent": {}}


def test_agents_are_found_by_their_names(store: Store) -> None:
    for agent_id, user_id, name in [
        ("agent-1", DEFAULT_USER, "Ann"),
        ("agent-2", DEFAULT_USER, "Bob"),
        ("agent-3", "user-2", "Ann"),
        ("agent-4", DEFAULT_USER, "Ann"),
        ("agent-5", DEFAULT_USER, None),
    ]:
        store.agents.create(agent_id, user_id, spec(name))
    assert store.agents.ids(DEFAULT_USER, "Ann") == ["agent-1", "agent-4"]
    assert store.agents.ids("user-2", "Ann") == ["agent-3"]
    assert [store.agents.ids(DEFAULT_USER, name) for name in ("ann", "", "agent-5")] == [[], [], ["agent-5"]]
    ann = store.agents.find("agent-1", DEFAULT_USER)
    assert ann is not None
    assert store.agents.update(ann, spec("Bob"))
    assert store.agents.ids(DEFAULT_USER, "Bob") == ["agent-1", "agent-2"]
    assert store.agents.ids(DEFAULT_USER) == ["agent-1", "agent-2", "agent-4", "agent-5"]


def test_a_search_by_name_uses_an_index(tmp_path: Path) -> None:
    with Store.open(tmp_path / "data") as opened, opened.database.reading() as connection:
        query = sa.select(agents.c.id).where(agents.c.user_id == "u", agents.c.name == "n").order_by(agents.c.agent)
        text = query.compile(connection, compile_kwargs={"literal_binds": True})
        plan = str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all())
    assert "agents_by_name (user_id=? AND name=?)" in plan

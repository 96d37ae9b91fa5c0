"""Files in the store: whole, of one user, unknown once deleted or expired; on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from batchray.errors import KeyInUseError
from batchray.store import DEFAULT_USER, NewFile, Store

PARTS = [b"a" * 1000, b"b" * 1000, b"c"]
TABLES = ("files", "file_parts")
PAST, FUTURE = "2020-01-01T00:00:00.000000+00:00", "2999-01-01T00:00:00.000000+00:00"


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = request.getfixturevalue("database").new_url() if request.param == "postgres" else None
    with Store.open(tmp_path / "data", url) as opened:
        yield opened


def new(name: str, expires_at: str | None = FUTURE, key: str | None = None) -> NewFile:
    return NewFile(f"file-{name}", f"{name}.jsonl", "batch", 2001, expires_at, key, key and "digest")


def n_rows(store: Store) -> int:
    with store.database.reading() as connection:
        counts = [connection.execute(sa.text(f"SELECT count(*) FROM {name}")).scalar_one() for name in TABLES]
    return sum(counts)


def test_a_file_is_stored_in_parts_and_belongs_to_its_user(store: Store) -> None:
    made = store.files.create(DEFAULT_USER, new("one"), PARTS)
    assert store.files.find("file-one", DEFAULT_USER) == made
    assert b"".join(store.files.content(made)) == b"".join(PARTS)
    assert store.files.find("file-one", "user-2") is None
    assert not store.files.forget("file-one", "user-2")
    assert store.files.listed("user-2", "asc", 10) == []


def test_files_are_listed_in_pages_in_both_orders(store: Store) -> None:
    made = [store.files.create(DEFAULT_USER, new(str(number)), PARTS) for number in range(4)]
    assert store.files.listed(DEFAULT_USER, "asc", 2) == made[:2]
    assert store.files.listed(DEFAULT_USER, "asc", 9, after=made[1].file) == made[2:]
    assert store.files.listed(DEFAULT_USER, "desc", 2, after=made[2].file) == made[1::-1]


def test_a_failure_while_a_file_is_stored_leaves_nothing(store: Store) -> None:
    def broken() -> Iterator[bytes]:
        yield PARTS[0]
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"):
        store.files.create(DEFAULT_USER, new("one"), broken())
    assert n_rows(store) == 0


def test_deleted_and_expired_files_are_unknown_and_then_gone(store: Store) -> None:
    kept = store.files.create(DEFAULT_USER, new("kept"), PARTS)
    store.files.create(DEFAULT_USER, new("expired", PAST), PARTS)
    store.files.create(DEFAULT_USER, new("deleted"), PARTS)
    assert store.files.forget("file-deleted", DEFAULT_USER)
    assert store.files.find("file-expired", DEFAULT_USER) is store.files.find("file-deleted", DEFAULT_USER) is None
    assert store.files.listed(DEFAULT_USER, "asc", 9) == [kept]
    while store.files.purge():
        pass
    assert n_rows(store) == 1 + len(PARTS)
    assert b"".join(store.files.content(kept)) == b"".join(PARTS)


def test_an_idempotency_key_is_of_one_file_until_that_is_gone(store: Store) -> None:
    made = store.files.create(DEFAULT_USER, new("one", key="k"), PARTS)
    assert store.files.find_by_idempotency_key(DEFAULT_USER, "k") == made
    assert store.files.find_by_idempotency_key("user-2", "k") is None
    with pytest.raises(KeyInUseError):
        store.files.create(DEFAULT_USER, new("two", key="k"), PARTS)
    store.files.forget("file-one", DEFAULT_USER)
    store.files.create(DEFAULT_USER, new("three", PAST, key="k"), PARTS)
    store.files.create(DEFAULT_USER, new("four", key="k"), PARTS)  # the one before has expired

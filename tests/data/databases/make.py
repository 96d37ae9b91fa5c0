"""Makes a database of an older version of batchray, and notes what that version answers.

Run it with the older version on the path, for example version 1 of the schema from commit cbd6ca0 and version 2 from
commit 0ab2a6b:

    git archive --prefix=old/ cbd6ca0 | tar x -C /tmp
    PYTHONPATH=/tmp/old python tests/data/databases/make.py /tmp/made sqlite_1 tests/data/databases
    PYTHONPATH=/tmp/old python tests/data/databases/make.py /tmp/made postgres_1 tests/data/databases --url URL

It writes NAME.sql, a dump of the database, and NAME.json, the answers.  The names that it imports are those of the
older versions, so that it does not run with this one.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import importlib
import json
import shutil
import sqlite3
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

GATE = threading.Event()


def note(text: str) -> str:
    """Return a text."""
    return f"noted {text}"


def hold() -> str:
    """Return when the gate is open."""
    GATE.wait()
    return "held"


def drop(key: str) -> str:
    """Drop a key."""
    return f"{key} is gone"


def plain(value: Any) -> Any:
    """Return JSON data: dataclasses by field, bytes as base64."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value.to_dict() if hasattr(value, "to_dict") else value


def asking(*turns: dict[str, Any]) -> str:
    return json.dumps({"script": turns})


def called(name: str, **arguments: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": name, "arguments": arguments}]}


def agents(batchray: Any) -> list[Any]:
    scripted = {"model": "offline/scripted"}
    return [
        batchray.Agent(id="plain", **scripted),
        batchray.Agent(id="stepper", tools=(note, hold), **scripted),
        batchray.Agent(id="guarded", tools=(drop,), requires_approval=("drop",), **scripted),
        batchray.Agent(id="friend", stateful=True, memory_blocks=[{"label": "human", "value": "unknown"}], **scripted),
    ]


def remembering(old: str, new: str) -> dict[str, Any]:
    return called("memory_replace", label="human", old_str=old, new_str=new)


FINISHED = [
    {"agent_id": "plain", "input": asking({"text": "hello", "usage": {"prompt_tokens": 3, "completion_tokens": 2}})},
    {"agent_id": "plain", "input": asking({"fail": {"type": "invalid_response", "message": "broken"}})},
    {"agent_id": "guarded", "input": asking(called("drop", key="k-1"), {"text": "dropped"})},
    {"agent_id": "guarded", "input": asking(called("drop", key="k-2"), {"text": "dropped"}), "custom_id": "two"},
    {"agent_id": "plain", "input": asking({"text": "grüße, 世界", "reasoning": "why not"}), "custom_id": "last"},
]
CONVERSATION = [
    {"agent_id": "friend", "input": asking(remembering("unknown", "called Ada"), {"text": "noted"})},
    {"agent_id": "friend", "input": asking({"text": "hello Ada"})},
]
UNFINISHED = [
    {"agent_id": "plain", "input": asking({"text": "first"})},
    {"agent_id": "stepper", "input": asking(called("note", text="one"), called("hold"), {"text": "second"})},
    *({"agent_id": "plain", "input": asking({"text": f"number {n}"})} for n in range(2, 5)),
]


def run_all(batchray: Any, options: dict[str, Any]) -> dict[str, str]:
    """Run the jobs, and stop those that are to stay unfinished."""
    ids = {}
    url = "http://127.0.0.1:9/callback"
    ids["finished"] = batchray.run(FINISHED, agents(batchray), progress=False, callback_url=url, **options).id
    for n, request in enumerate(CONVERSATION):
        ids[f"conversation_{n}"] = batchray.run([request], agents(batchray), progress=False, **options).id
    for name in ("unfinished", "cancelling"):
        job = batchray.submit(UNFINISHED, agents(batchray), **{**options, "max_in_flight": 1})
        while job.record().done < 1:
            time.sleep(0.05)
        time.sleep(1.0)  # until the second item holds, with its first step kept
        job.stop()
        ids[name] = job.id
    return ids


def add_what_crashes_leave(store: Any, ids: dict[str, str]) -> None:
    """Count crashes, keep an item's steps over them, and leave control requests."""
    records: Any = importlib.import_module("batchray.store.records")

    crashed = store.start_job(ids["unfinished"])
    [second, third] = store.unfinished(crashed, after=-1, limit=2)
    attempts: list[Any] = [(second.index, second.attempt + 1, 1), (third.index, 1, 0)]
    if hasattr(records, "NewAttempt"):  # since version 2 of the schema, which counts collateral crashes too
        attempts = [records.NewAttempt(*attempts[0], 1), records.NewAttempt(*attempts[1])]
    store.begin_attempts(crashed, attempts)
    store.ask_leader(crashed, is_paused=True, max_in_flight=3)
    store.release_lease(crashed)
    canceled = store.start_job(ids["cancelling"])
    store.ask_leader(canceled, is_canceled=True)
    store.release_lease(canceled)


def answers(store: Any, ids: dict[str, str]) -> dict[str, Any]:
    """Note what the store tells of everything in it."""
    from batchray.store import DEFAULT_USER

    told: dict[str, Any] = {"ids": ids, "jobs": {}, "results": {}, "unfinished": {}, "steps": {}}
    for name, job_id in ids.items():
        job = store.job(job_id)
        told["jobs"][name] = {key: value for key, value in plain(job).items() if key != "epoch"}
        told["results"][name] = plain(store.results(job))
        told["unfinished"][name] = plain(store.unfinished(job, after=-1))
        told["steps"][name] = plain(store.steps(job, 1))
    told["conversation"] = plain(store.conversation(DEFAULT_USER, "friend"))
    told["memory"] = store.memory(DEFAULT_USER, "friend")
    told["due"] = [[due.job.id, due.n_attempts] for due in store.due_callbacks(time.time() + 60, 10)]
    told["failures"] = plain(store.failure_kinds(store.job(ids["finished"])))
    return told


def dump(data_dir: Path, url: str | None, schema_version: int) -> str:
    if url is not None:
        flags = ["--inserts", "--no-owner", "--no-privileges", "--no-comments"]
        text = subprocess.run(
            ["pg_dump", *flags, url.replace("+psycopg", "")], check=True, capture_output=True, text=True
        ).stdout
        settings = ("--", "\\", "SET ", "SELECT pg_catalog.set_config")  # of pg_dump's own session
        return "\n".join(line for line in text.splitlines() if line and not line.startswith(settings)) + "\n"
    with sqlite3.connect(data_dir / "batchray.db") as connection:
        return "\n".join([*connection.iterdump(), f"PRAGMA user_version = {schema_version};", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("name")
    parser.add_argument("output", type=Path)
    parser.add_argument("--url")
    given = parser.parse_args()

    batchray, store_package = importlib.import_module("batchray"), importlib.import_module("batchray.store")
    open_store, version = store_package.Store.open, importlib.import_module("batchray.store.tables").SCHEMA_VERSION

    shutil.rmtree(given.data_dir, ignore_errors=True)
    options = {"executor": "local", "data_dir": given.data_dir, "database_url": given.url}
    ids = run_all(batchray, options)
    GATE.set()
    with open_store(given.data_dir, given.url) as store:
        add_what_crashes_leave(store, ids)
        told = answers(store, ids)
    (given.output / f"{given.name}.sql").write_text(dump(given.data_dir, given.url, version))
    for name in ("unfinished", "cancelling"):
        batchray.resume(ids[name], agents(batchray), progress=False, max_in_flight=1, **options)
    with open_store(given.data_dir, given.url) as store:
        told["resumed"] = {name: plain(store.results(store.job(ids[name]))) for name in ("unfinished", "cancelling")}
    (given.output / f"{given.name}.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()

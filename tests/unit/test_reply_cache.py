"""The cache of model calls: what is asked again, what is not, and what a damaged cache does."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest

from batchray.agents import AttemptRunner, encode_input, read_report
from batchray.agents.attempt import AttemptReport
from batchray.config import Agent, BoundAgent, Provider, bind_agents
from batchray.errors import ConfigError
from batchray.models.reply_cache import KeptChunks, ReplyCache
from batchray.schema import new_job_id
from tests.provider_server import ProviderServer

PROTOCOLS = ["openai", "responses", "anthropic"]


@pytest.fixture
async def server() -> AsyncIterator[ProviderServer]:
    async with ProviderServer() as running:
        yield running


def calculate(expression: str) -> str:
    """Return the value of an expression.

    Args:
        expression: A product of two numbers.
    """
    return {"6 * 7": "42"}[expression]


class Asker:
    """Asks an agent with a cache in `directory`, each time in a new process as far as the agent can tell."""

    def __init__(self, server: ProviderServer, directory: Path) -> None:
        self.server, self.directory = server, directory

    def bound(self, protocol: str = "openai", **options: Any) -> BoundAgent:
        base_url = self.server.root_url if protocol == "anthropic" else self.server.base_url
        provider = Provider.model_validate({"protocol": protocol, "base_url": base_url, "max_retries": 0})
        agent = Agent(**{"id": "a", "model": "p/m", "cache": True, **options})
        environment = {"BATCHRAY_CACHE_DIR": str(self.directory)}
        return bind_agents([agent], {"p": provider}, environment).agents["a"]

    async def ask(self, text: str, metadata: dict[str, Any] | None = None, **options: Any) -> AttemptReport:
        request = {"agent_id": "a", "input": text, "metadata": metadata}
        runner = AttemptRunner()
        try:
            item = encode_input(new_job_id(), 0, 1, orjson.dumps(request))
            return read_report(await runner.run_attempt(self.bound(**options), item))
        finally:
            await runner.close()

    @property
    def n_calls(self) -> int:
        return len(self.server.calls)


@pytest.fixture
def asker(server: ProviderServer, tmp_path: Path) -> Asker:
    return Asker(server, tmp_path / "cache")


def said(report: AttemptReport) -> Any:
    assert report.error is None
    return [
        {"content": each.get("content"), "returns": each.get("tool_returns")} for each in orjson.loads(report.messages)
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_the_same_call_is_made_once(asker: Asker, protocol: str) -> None:
    first = await asker.ask("hello", protocol=protocol)
    again = await asker.ask("hello", protocol=protocol)
    assert said(again) == said(first)
    assert again.usage == first.usage
    assert asker.n_calls == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_run_with_tools_repeats_none_of_its_calls(asker: Asker, protocol: str) -> None:
    text = '[[tool:calculate {"expression": "6 * 7"}]] compute'
    first = await asker.ask(text, protocol=protocol, tools=(calculate,))
    n_calls = asker.n_calls
    assert n_calls == 2
    again = await asker.ask(text, protocol=protocol, tools=(calculate,))
    assert said(again)[-1] == said(first)[-1]
    assert asker.n_calls == n_calls


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_tool_calls_without_ids_get_the_same_ones_again(asker: Asker, protocol: str) -> None:
    call = '[[tool:calculate {"expression": "6 * 7"}]]'
    text = f"[[noids]] {call} {call} compute"
    first = await asker.ask(text, protocol=protocol, tools=(calculate,))
    n_calls = asker.n_calls
    assert n_calls == 2
    again = await asker.ask(text, protocol=protocol, tools=(calculate,))
    assert said(again) == said(first)
    assert asker.n_calls == n_calls
    returned = [each["tool_call_id"] for message in said(again) for each in message["returns"] or ()]
    assert len(set(returned)) == 2


async def test_an_answer_that_is_not_streamed_is_kept_too(asker: Asker) -> None:
    first = await asker.ask("hello", body={"stream": False})
    assert said(await asker.ask("hello", body={"stream": False})) == said(first)
    assert asker.n_calls == 1


@pytest.mark.parametrize(
    "other",
    [
        {"text": "hello!"},
        {"metadata": {"repeat": 1}},
        {"system": "Be brief."},
        {"temperature": 0.5},
        {"model": "p/n"},
        {"protocol": "responses"},
        {"body": {"seed": 3}},
        {"cache": False},
    ],
)
async def test_a_call_that_differs_is_made(asker: Asker, other: dict[str, Any]) -> None:
    await asker.ask("hello")
    await asker.ask(**{"text": "hello", **other})
    assert asker.n_calls == 2


async def test_metadata_other_than_the_repeat_make_no_difference(asker: Asker) -> None:
    await asker.ask("hello", {"repeat": 0, "row": 1})
    await asker.ask("hello", {"repeat": 0, "row": 2})
    assert asker.n_calls == 1


@pytest.mark.parametrize("directive", ["status:500", "reset", "finish:length"])
async def test_a_call_that_failed_is_made_again(asker: Asker, directive: str) -> None:
    text = f"[[{directive} x1]] hello"
    assert (await asker.ask(text)).error is not None
    said(await asker.ask(text))
    said(await asker.ask(text))
    assert asker.n_calls == 2


async def test_another_provider_with_the_same_body_is_asked(asker: Asker) -> None:
    await asker.ask("hello")
    async with ProviderServer() as other:
        second = Asker(other, asker.directory)
        await second.ask("hello")
        assert second.n_calls == 1


async def test_a_damaged_file_counts_as_absent(asker: Asker) -> None:
    first = await asker.ask("hello")
    [file] = (path for path in asker.directory.rglob("*") if path.is_file())
    assert file.stat().st_mode & 0o077 == 0
    content = file.read_bytes()
    for damaged in (b"", content[:-3], content[:25] + b"x" + content[26:]):
        file.write_bytes(damaged)
        assert said(await asker.ask("hello")) == said(first)
        assert file.read_bytes() == content
    assert asker.n_calls == 4


async def test_a_reply_that_this_version_cannot_read_is_asked_for_again(asker: Asker) -> None:
    first = await asker.ask("hello")
    cache = ReplyCache(asker.directory, 10**9)
    [file] = (path for path in asker.directory.rglob("*") if path.is_file())
    cache.put(bytes.fromhex(file.parent.name + file.name), b"data: {}\n\n")
    assert said(await asker.ask("hello")) == said(first)
    assert asker.n_calls == 2


async def test_a_cache_that_cannot_be_written_is_a_warning(
    asker: Asker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING, "batchray.models.reply_cache"):
        said(await asker.ask("hello"))
        said(await asker.ask("hello"))
    assert asker.n_calls == 2
    assert "replies are not cached" in caplog.text


KEYS = [bytes([0, index // 256, index % 256]) for index in range(1_000)]  # of one folder, whose share is 10,000 bytes
SHARE = 10_000


def files_of(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [10, 500, 3_000])
def test_replies_keep_to_the_limit_whichever_process_wrote_them(size: int, tmp_path: Path) -> None:
    chance = Random(size).random
    for key in KEYS:  # each by a cache that has seen no other
        ReplyCache(tmp_path, 256 * SHARE, chance).put(key, b"x" * size)
    n_bytes = sum(path.stat().st_size for path in files_of(tmp_path))
    assert SHARE // 2 <= n_bytes <= 1.5 * SHARE
    assert ReplyCache(tmp_path, 256 * SHARE).get(KEYS[-1]) == b"x" * size


def test_the_replies_used_longest_ago_go_first(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path, 256 * SHARE, lambda: 0.0)
    for age, key in enumerate(KEYS[:3]):
        cache.put(key, b"x" * 3_000)
        [file] = (path for path in files_of(tmp_path) if path.name == key.hex()[2:])
        os.utime(file, (age, age))
    assert cache.get(KEYS[0]) is not None  # which is a use
    for name, written_at in (("killed", 0.0), ("writing", time.time() - 60)):
        left = tmp_path / "00" / f"{name}.1.2.part"
        left.write_bytes(b"x" * 900)
        os.utime(left, (written_at, written_at))
    cache.put(KEYS[3], b"x" * 3_000)
    assert [cache.get(key) is not None for key in KEYS[:4]] == [True, False, True, True]
    assert sorted(path.name for path in files_of(tmp_path) if path.suffix) == ["writing.1.2.part"]


def test_an_entry_that_cannot_be_deleted_stops_no_other_deletion(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ReplyCache(tmp_path, 256 * SHARE, lambda: 0.0)
    stays = tmp_path / "00" / "directory"
    stays.mkdir(parents=True)
    os.utime(stays, (0, 0))
    for age, key in enumerate(KEYS[:4], start=1):
        cache.put(key, b"x" * 3_000)
        [file] = (path for path in files_of(tmp_path) if path.name == key.hex()[2:])
        os.utime(file, (age, age))
    assert [cache.get(key) is not None for key in KEYS[:4]] == [False, False, False, True]
    assert (stays.is_dir(), caplog.text) == (True, "")


def test_a_reply_larger_than_its_share_is_not_kept(tmp_path: Path) -> None:
    cache = ReplyCache(tmp_path, 256 * SHARE)
    cache.put(KEYS[0], b"x" * SHARE)
    assert cache.get(KEYS[0]) is None
    ReplyCache(tmp_path, 0).put(KEYS[1], b"")
    assert files_of(tmp_path) == []


def test_writers_that_delete_the_same_replies_do_not_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def write(first: int) -> None:
        cache = ReplyCache(tmp_path, 256 * SHARE, lambda: 0.0)
        for key in KEYS[first : first + 400 : 4]:
            cache.put(key, b"x" * 500)
            assert cache.get(key) in (None, b"x" * 500)

    with ThreadPoolExecutor(4) as threads, caplog.at_level(logging.WARNING):
        list(threads.map(write, range(4)))
    assert not caplog.records
    assert sum(path.stat().st_size for path in files_of(tmp_path)) <= SHARE + 4 * 520


async def test_kept_chunks_come_once() -> None:
    chunks = KeptChunks(b"abc")
    assert not chunks.at_eof()
    assert [await chunks.readany(), await chunks.readany()] == [b"abc", b""]
    assert chunks.at_eof()


def test_the_directory_is_the_users_unless_a_variable_says_otherwise() -> None:
    agent = Agent(id="a", model="offline/rules", cache=True)

    def directory(**environment: str) -> str | None:
        return bind_agents([agent], {}, environment).agents["a"].cache_dir

    assert directory(XDG_CACHE_HOME="/x") == "/x/batchray"
    assert directory() == str(Path.home() / ".cache" / "batchray")
    assert directory(BATCHRAY_CACHE_DIR="/y", XDG_CACHE_HOME="/x") == "/y"
    assert bind_agents([agent], {}, {"BATCHRAY_CACHE_MAX_BYTES": "70000"}).agents["a"].cache_max_bytes == 70_000
    with pytest.raises(ConfigError, match=r"agent 'a': BATCHRAY_CACHE_MAX_BYTES is a number of bytes.*, not '5 GB'"):
        directory(BATCHRAY_CACHE_MAX_BYTES="5 GB")
    with pytest.raises(ConfigError, match="cache cannot be given with run"):
        Agent(id="f", run=calculate, cache=True)

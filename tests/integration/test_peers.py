"""A small form of the benchmark of peers: each contender of this environment answers, and what it took is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.peers.__main__ import measure
from tests.benchmarks.peers.table import lines_of, markdown_of
from tests.benchmarks.peers.works import Work

WORKS = [
    Work("plain", n=100, concurrency=50, latency_s=0.01, slow_s=0.1, calm="calm"),
    Work("calm", n=100, concurrency=50, latency_s=0.01),
    Work("steps", n=10, concurrency=5, latency_s=0.01, n_tool_steps=2),
]


def test_every_contender_answers_every_request_with_the_model_calls_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BATCHRAY_EXECUTOR", "local")
    rows = list(measure(WORKS, ["aiohttp", "batchray"], 1, tmp_path))
    assert [(row.work, row.contender) for row in rows] == [
        (work.name, contender) for contender in ("aiohttp", "batchray") for work in WORKS
    ]
    for work, row in zip([*WORKS, *WORKS], rows, strict=True):
        run = row.measured
        assert (run.n_right, run.n_calls) == (work.n, work.n_calls)
        assert run.wall_s >= work.ideal_s
        assert run.before_s + run.between_s + run.after_s == pytest.approx(run.wall_s)
        assert run.p50_s is not None
        assert run.p50_s >= work.latency_s * (work.n_tool_steps + 1)
        assert run.slowest_s is None or run.slowest_s >= work.slow_s > 0
    text = "\n".join(lines_of(WORKS, rows))
    assert "100 requests of 0.01 s, 1 of them of 0.1 s, 50 at once; ideal 0.10 s" in text
    assert text.count(" x that of 'calm'") == 2
    assert "WITHOUT" not in text
    assert "more than needed" not in text
    bare, ours = markdown_of(WORKS, rows)[-2:]
    assert bare.startswith("| bare aiohttp loop | ")
    assert ours.count(" s (") == len(WORKS)

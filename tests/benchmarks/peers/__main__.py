"""Runs the table: `python -m tests.benchmarks.peers --help`."""

from __future__ import annotations

import argparse
import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks.harness import provider, report
from tests.benchmarks.peers.environments import PEERS, default_directory, python_of
from tests.benchmarks.peers.measure import Contender, Measured
from tests.benchmarks.peers.table import BASELINE, MAX_P50_OF_CALM, Row, lines_of, markdown_of, p50_ratio, wall_ratio
from tests.benchmarks.peers.works import WORKS, Work


def measure(works: Sequence[Work], contenders: Sequence[str], rounds: int, environments: Path) -> Iterator[Row]:
    """Run each work by each contender in turns, and print each run as it ends."""
    pythons = {name: python_of(name, environments) for name in contenders}
    with contextlib.ExitStack() as mocks:
        works = [
            work._replace(base_url=mocks.enter_context(provider(tokens=50, latency_s=work.latency_s))) for work in works
        ]
        for _ in range(rounds):
            number = uuid.uuid4().hex[:6]
            for name in contenders:
                with Contender(PEERS[name], pythons[name]) as contender:
                    for work in filter(PEERS[name].runs, works):
                        measured = contender.measure(work)
                        print(f"round {number}: {work.name} by {name}: {measured.wall_s:.2f} s", flush=True)
                        yield Row(number, work.name, name, measured)


def _kept(file: Path) -> list[Row]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [Row(number, work, name, Measured(*figures)) for number, work, name, figures in map(json.loads, lines)]


def _names(known: Sequence[str], given: str) -> list[str]:
    names = given.split(",")
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}")
    return names


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--work", type=lambda text: _names([*WORKS], text), default=[*WORKS], help=", ".join(WORKS))
    parser.add_argument("--only", type=lambda text: _names([*PEERS], text), default=[*PEERS], help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=3, help="0 shows the runs of --runs again")
    parser.add_argument("--runs", type=Path, help="a file that the runs are added to; all its runs are shown")
    parser.add_argument("--markdown", action="store_true", help="print a table of Markdown too")
    parser.add_argument("--environments", type=Path, default=default_directory(), help="where environments are made")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    asked = _arguments()
    calm = {WORKS[name].calm for name in asked.work}
    works = [work for name, work in WORKS.items() if name in {*asked.work, *calm}]
    rows = _kept(asked.runs) if asked.runs else []
    for row in measure(works, asked.only, asked.rounds, asked.environments):
        rows.append(row)
        if asked.runs:
            with asked.runs.open("a") as runs:
                runs.write(json.dumps(row) + "\n")
    broken = _broken(works, rows)
    table = markdown_of(works, rows) if asked.markdown else []
    report([*lines_of(works, rows), *table, *broken], is_held=not broken)


def _broken(works: Sequence[Work], rows: Sequence[Row]) -> list[str]:
    """Return the limits that batchray does not hold."""
    slower = [
        f"{work.name}: p50 without stragglers / p50 of {work.calm} = {reached:.3f} (limit {MAX_P50_OF_CALM})"
        for work in works
        if (reached := p50_ratio(rows, work, "batchray") or 0.0) > MAX_P50_OF_CALM
    ]
    return slower + [
        f"{work.name}: batchray / {BASELINE} = {reached:.2f} (limit {work.limit})"
        for work in works
        if work.limit and (reached := wall_ratio(rows, work.name, "batchray") or 0.0) > work.limit
    ]


if __name__ == "__main__":
    main()

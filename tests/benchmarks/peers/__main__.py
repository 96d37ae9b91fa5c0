"""Runs the table: `python -m tests.benchmarks.peers --help`."""

from __future__ import annotations

import argparse
import contextlib
from collections import defaultdict
from collections.abc import Sequence

from tests.benchmarks.harness import provider, report
from tests.benchmarks.peers.measure import Contender, Measured
from tests.benchmarks.peers.table import BASELINE, lines_of, ratio
from tests.benchmarks.peers.works import WORKS, Work

MODULES = {BASELINE: "aiohttp_loop", "batchray": "batchray_job"}
"""The contenders, in the order of their turns."""


def measure(works: Sequence[Work], contenders: Sequence[str], rounds: int) -> dict[tuple[str, str], list[Measured]]:
    """Run each work by each contender in turns, and print each run as it ends."""
    runs = defaultdict[tuple[str, str], list[Measured]](list)
    with contextlib.ExitStack() as mocks:
        works = [
            work._replace(base_url=mocks.enter_context(provider(tokens=50, latency_s=work.latency_s))) for work in works
        ]
        for number in range(rounds):
            for name in contenders:
                with Contender(f"tests.benchmarks.peers.{MODULES[name]}") as contender:
                    for work in works:
                        measured = contender.measure(work)
                        runs[work.name, name].append(measured)
                        print(f"round {number + 1}: {work.name} by {name}: {measured.wall_s:.2f} s", flush=True)
    return runs


def _names(known: Sequence[str], given: str) -> list[str]:
    names = given.split(",")
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))} is none of {', '.join(known)}")
    return names


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("--work", type=lambda text: _names([*WORKS], text), default=[*WORKS], help=", ".join(WORKS))
    parser.add_argument(
        "--only", type=lambda text: _names([*MODULES], text), default=[*MODULES], help=", ".join(MODULES)
    )
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    works = [WORKS[name] for name in asked.work]
    runs = measure(works, asked.only, asked.rounds)
    broken = [
        f"{work.name}: batchray / {BASELINE} = {reached:.2f} (limit {work.limit})"
        for work in works
        if work.limit and (reached := ratio(runs, work.name, "batchray", lambda run: run.wall_s) or 0.0) > work.limit
    ]
    report([*lines_of(works, asked.only, runs), *broken], is_held=not broken)


if __name__ == "__main__":
    main()

"""20 clients ask an agent and leave after a second; measures the last model call after they left, on both executors.

python -m tests.benchmarks.askers
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.benchmarks.harness import report
from tests.polling import until
from tests.provider_server import run_in_thread
from tests.server.askers import ENDLESS, answering_server, leave_after_the_first_call, runs_of

N_CLIENTS, STAY_S, LIMIT_S = 20, 1.0, 2.0


def main() -> None:
    """Measure and print."""
    last_s = {executor: last_call_s(executor) for executor in ("local", "ray")}
    lines = [
        f"{executor}: the last model call began {at:.2f} s after the clients left" for executor, at in last_s.items()
    ]
    report([f"{N_CLIENTS} clients (limit {LIMIT_S:g} s)", *lines], is_held=max(last_s.values()) <= LIMIT_S)


def last_call_s(executor: str) -> float:
    """Return when the last model call began, in seconds after the clients left; negative if before."""
    bodies = [{"input": f"{ENDLESS} {n}", "streaming": n % 2 == 0} for n in range(N_CLIENTS)]
    with tempfile.TemporaryDirectory(prefix="br") as directory, run_in_thread() as provider:
        with answering_server(Path(directory), provider, executor=executor) as server:
            left_at = leave_after_the_first_call(server, provider, bodies, stay_s=STAY_S)
            until(lambda: all(run.is_ended for run in runs_of(server)))
            time.sleep(2 * LIMIT_S)  # a run that is not stopped calls its model every 0.3 s
            assert {run.status for run in runs_of(server)} == {"cancelled"}
            assert server.stop() == 0
        return provider.calls[-1].at - left_at


if __name__ == "__main__":
    main()

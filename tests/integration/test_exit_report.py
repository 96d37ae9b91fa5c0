from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from batchray.executors.ray.exit_report import ExitReport, mapped, read_exit_report

DEATHS = {
    "os._exit(7)": "it exited with status 7; it held ",
    "os.kill(os.getpid(), signal.SIGKILL)": "it was killed by a signal that leaves no trace, as the kernel does",
    "faulthandler._sigsegv()": "it crashed: Segmentation fault in <module> (<string>, line 7); it held ",
    "os.abort()": "it crashed: Aborted in <module> (<string>, line 7); it held ",
}


@pytest.mark.parametrize("how", DEATHS)
def test_another_process_reads_why_one_died(how: str, tmp_path: Path) -> None:
    code = f"""
import faulthandler, os, signal, sys
from pathlib import Path
from batchray.executors.ray.exit_report import ExitReport
report = ExitReport(Path(sys.argv[1]))
if os.fork() == 0: os._exit(1)
{how}
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "death")], check=False, capture_output=True)
    death = read_exit_report(tmp_path / "death")
    assert death is not None
    assert str(death).startswith(DEATHS[how])
    assert 2**20 < death.n_bytes < 2**30
    assert read_exit_report(tmp_path / "death") == death  # the first answer may be lost on its way
    assert read_exit_report(tmp_path / "another") is None


def test_a_process_that_keeps_running_leaves_no_file(tmp_path: Path) -> None:
    ExitReport(tmp_path / "death").close()
    assert list(tmp_path.iterdir()) == []


def test_the_disk_space_of_a_file_is_reserved_at_once(tmp_path: Path) -> None:
    page = mapped(tmp_path / "kept", 400_000)  # otherwise the first write to one of its pages could kill the process
    assert (tmp_path / "kept").stat().st_blocks * 512 >= 400_000
    page.close()


FULL = """
import resource, sys
from pathlib import Path
from batchray.executors.ray.activity_log import ActivityLog
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
log = ActivityLog("actor", Path(sys.argv[1]))
with log.executing("job-1", 0):
    pass
log.close()
print("it lives")
"""


def test_a_process_survives_if_no_file_can_be_written(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], check=False, capture_output=True, text=True)
    assert (ran.stdout, ran.returncode) == ("it lives\n", 0), ran.stderr
    assert list(tmp_path.iterdir()) == []

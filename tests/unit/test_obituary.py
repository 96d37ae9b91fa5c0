from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from batchray.cluster.obituary import Obituary, read_obituary

DEATHS = {
    "os._exit(7)": "it exited with status 7; it held ",
    "os.kill(os.getpid(), signal.SIGKILL)": "it was killed by a signal that leaves no trace, as the kernel does",
    "faulthandler._sigsegv()": "it crashed: Segmentation fault in <module> (<string>, line 7); it held ",
    "os.abort()": "it crashed: Aborted in <module> (<string>, line 7); it held ",
}


@pytest.mark.parametrize("how", DEATHS)
def test_what_a_process_died_of_is_read_by_another(how: str, tmp_path: Path) -> None:
    code = f"""
import faulthandler, os, signal, sys
from pathlib import Path
from batchray.cluster.obituary import Obituary
kept = Obituary(Path(sys.argv[1]))
if os.fork() == 0: os._exit(1)
{how}
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "death")], check=False, capture_output=True)
    death = read_obituary(tmp_path / "death")
    assert death is not None
    assert str(death).startswith(DEATHS[how])
    assert 2**20 < death.n_bytes < 2**30
    assert read_obituary(tmp_path / "death") == death  # the first answer may have got lost
    assert read_obituary(tmp_path / "another") is None


def test_a_process_that_lives_on_leaves_nothing(tmp_path: Path) -> None:
    Obituary(tmp_path / "death").close()
    assert list(tmp_path.iterdir()) == []

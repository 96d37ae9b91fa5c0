"""The contenders, and the environments that they run in, which are made from nothing when they are first needed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.peers.works import Work


class Peer(NamedTuple):
    """A contender.  Without requirements it runs in the environment of this process."""

    title: str
    module: str
    arguments: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    has_tools: bool = True
    """Whether it runs agents with tools, by itself or by a loop written for it."""
    has_others: bool = True
    """Whether it runs works without tools; not if these would be those of another contender again."""

    def runs(self, work: Work) -> bool:
        """Whether it runs a work."""
        return self.has_tools if work.has_tools else self.has_others


_OPENAI = ("openai[aiohttp]==3.57.0",)
_RAY = ("ray==2.60.0", "aiohttp==3.14.5", "orjson==3.13.0")

PEERS = {
    "aiohttp": Peer("bare aiohttp loop", "aiohttp_loop"),
    "batchray": Peer("batchray", "batchray_job"),
    "batchray-stored": Peer("batchray, tool not marked `idempotent`", "batchray_job", ("stored",), has_others=False),
    "openai": Peer("OpenAI SDK loop, streamed", "openai_loop", requirements=_OPENAI),
    "openai-whole": Peer("OpenAI SDK loop, not streamed", "openai_loop", ("whole",), _OPENAI),
    "async-batch-llm": Peer(
        "async-batch-llm", "async_batch_llm_run", (), ("async-batch-llm[openai]==0.28.0",), has_tools=False
    ),
    "curator": Peer("Curator", "curator_run", (), ("bespokelabs-curator==0.1.31",), has_tools=False),
    "inspect": Peer("Inspect AI", "inspect_run", (), ("inspect-ai==0.3.285", "openai==3.57.0")),
    "ray-data-llm": Peer(
        "ray.data.llm, HTTP stage",
        "ray_data_llm",
        (),
        ("ray[data]==2.60.0", "pydantic==2.14.4", "aiohttp==3.14.5"),
        has_tools=False,
    ),
    "ray-actors": Peer("Ray actors without a store", "ray_actors", (), _RAY),
}
"""By name, in the order of their turns."""


def default_directory() -> Path:
    """Return where environments are kept: in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchray-peers"


def python_of(name: str, directory: Path) -> str:
    """Return the interpreter of a contender; its environment is made if there is none with these requirements."""
    requirements = PEERS[name].requirements
    if not requirements:
        return sys.executable
    key = hashlib.sha256(repr((sys.version_info[:2], requirements)).encode()).hexdigest()[:12]
    environment = directory / key
    python, is_whole = environment / "bin" / "python", environment / "is-whole"
    if not is_whole.exists():
        print(f"making an environment with {' '.join(requirements)}", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        subprocess.run(pip, check=True)
        is_whole.touch()
    return str(python)

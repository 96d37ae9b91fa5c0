"""The same works run by batchray and by other programs, in turns, against one mock provider.

    python -m tests.benchmarks.peers --work steps --only batchray,aiohttp --rounds 3

Each contender is a module that runs in a process of its own (`contender.py`); `works.py` has the works,
`measure.py` measures a run, and `table.py` shows the runs.
"""

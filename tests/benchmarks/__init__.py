"""Benchmarks: each prints a baseline from the same run next to batchray's figure, and fails if a limit is exceeded.

One by one with `python -m tests.benchmarks.NAME`, all with `python -m pytest -m benchmark -s`.
"""

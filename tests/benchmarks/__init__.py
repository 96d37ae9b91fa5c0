"""Benchmarks: each prints the baseline of its own run beside batchray's figure, and fails where a limit is missed.

One by one with `python -m tests.benchmarks.NAME`, all with `python -m pytest -m benchmark -s`.
"""

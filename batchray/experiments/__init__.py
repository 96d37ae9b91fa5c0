"""Experiments: variants of an agent, requests crossed with agents, scores of outcomes, and comparisons.

An experiment is a batch like any other.  `variants` and `cross` build its agents and requests, `apply` runs a scorer
over its stored outcomes as a job of its own, and `compare` reads both.  Nothing here has state: what belongs together
is in the metadata of the requests, so each step also works on jobs of another process, or of last week.

Start reading with `comparison.py`.
"""

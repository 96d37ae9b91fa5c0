"""Builders of the objects that test modules share: records, jobs, agents, batches, commands."""

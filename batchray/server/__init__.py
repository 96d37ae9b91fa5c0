"""The HTTP endpoint: Letta's batch API over the same driver and store as every other door."""

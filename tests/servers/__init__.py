"""Batches against model servers that others wrote, on loopback, each killed and restarted in the middle."""

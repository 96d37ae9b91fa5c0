"""Bytes -> checked requests."""

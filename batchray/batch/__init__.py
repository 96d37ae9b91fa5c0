"""Reads batches: bytes, lines or Python objects in, validated requests out.

Owns the input formats and their validation.  Imports only `errors` and `schema`.  Invariants:

- Never more than a group of requests is in memory, however large the batch.
- The bytes that were validated are the bytes that are stored.
- An error names the line or the index of the request.

Start reading at `parse`; `fast_path` and `strict_json` are its two validators, `spool` keeps requests on disk.
"""

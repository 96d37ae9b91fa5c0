"""The HTTP server: Letta's batch API, single requests to agents, and batchray's additions, on aiohttp.

This package owns HTTP (routes, limits, errors, API keys, the OpenAPI document) and the schedule of a server's jobs.
Jobs themselves run in `batchray.jobs`, as they do for Python and the command line.

Invariants:

- Accepted means durable: a batch and its items are committed before the response with the job's id is sent.  A cancel
  that was confirmed survives a crash.
- A batch is accepted completely or not at all, also if the server stops during an upload.
- The state of a scheduled job is one entry of `JobTable`, and changes only by a listed transition.
- No request blocks the event loop: queries run on threads, large bodies are checked in a subprocess, and everything a
  client sends is limited in size, time and number.
- No text that a client sent appears in logs or metric labels.
- Without API keys, only this machine has access.
- Ids, paths, bodies and statuses are those of Letta's API, so that its SDKs work unchanged.

Start reading in `app.py` (how the parts are connected), then `routes/batches.py`, `acceptance.py` and `scheduler.py`.
"""

"""Helpers that know nothing of jobs, agents or Ray, and import no other part of batchray.

Threads and event loops (`threads`), timeouts that pause (`timeouts`), cancelling with a reason (`cancellation`),
the event loop of sync code (`thread_loop`, with `loop_blockers` and `loop_steps`), the output of concurrent work
(`captured_output`), atomic file writes (`files`), waits between retries (`backoff`), failpoints for tests
(`failpoints`), the interpreter's settings (`interpreter`), the limit of open files (`descriptors`), and the import
paths of 0.1.0 (`moved`).

Invariants: importing a module starts nothing; clocks and randomness are arguments; a helper has at least two users, or
is a thing of its own that is easier to test here.
"""

"""Attempts on a Ray cluster: on a shared actor (a lane), or in a process of its own by one remote call each.

Owns the connection to Ray, the lanes and their replacement, the diagnosis of dead processes, and the job actor.

Invariants: attempts are counted in the store, never by Ray, so Ray retries nothing.  No truth lives in Ray: any actor,
or the whole cluster, may vanish, and the job resumes from the store.  Only bytes, numbers and frozen data cross.  One
attempt key is run at most once; a call that was lost is made again under the same key and joins the same run.  Nothing
outside `internals` names a private part of Ray.

Start reading at `executor` (chooses a lane or a process), then:

- `lanes` (which lane is up, replaces dead ones), `lane_client` (the driver's view of one lane), `lane_runs` (the
  calls that start its runs), `calls` (the call of a process);
- in the worker: `lane`, `run_registry` (one run for each key), `checkpointed_runs` (read by `checkpoint_reader`);
- causes of death: `activity_log`, `exit_report`, `oom`;
- the cluster: `connection`, `monitor`, `internals`; a driver's jobs seen from elsewhere: `job_actor`, `remote_job`.
"""

from __future__ import annotations

import logging

# Ray is imported after this.  In a notebook it would log there that ipywidgets is missing, which nothing here uses.
logging.getLogger("ray.widgets").setLevel(logging.WARNING)

"""The command line: commands that run, show, export and steer jobs, serve them, and keep keys and the database.

Owns arguments, what is printed, output files, and exit statuses.  Everything else is in the Python API and the server,
which the commands call.  Invariants:

- Nothing runs before the input is known to be usable; unusable input ends with status 2.
- Standard output has only what a program may read (ids, results, tables); progress and errors go to standard error.
- An interrupt stops the job, keeps every outcome, and prints the command that continues.
- `batchray --help` loads neither ray nor aiohttp: a command imports what it needs when it runs.

Start reading at `main` (the commands, and how errors become exit statuses), then `run` and `jobs`; `options` has the
shared options, `job_names` finds a job by a short name.
"""

"""Pure helpers that know nothing of jobs."""

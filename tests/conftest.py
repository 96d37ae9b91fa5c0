"""What all tests share.  Nothing here knows of Ray."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A busy machine is not a bug: how long an example takes, or its drawing, is no claim of any test.
settings.register_profile("batchray", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("batchray")

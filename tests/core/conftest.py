from __future__ import annotations

from hypothesis import HealthCheck, settings

# No example database: a run does not depend on earlier runs.
settings.register_profile(
    "default",
    deadline=None,
    database=None,
    derandomize=False,
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
settings.load_profile("default")

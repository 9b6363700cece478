"""HTTP service that gives verdicts. FastAPI is loaded where an app is made. The monitor is of `opnp.monitor`."""

from opnp.monitor import DriftMonitor, DriftSummary, drift_of_p_values
from opnp.serve.app import require_serving, serve_app
from opnp.serve.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "DEFAULT_LIMITS",
    "DriftMonitor",
    "DriftSummary",
    "Limits",
    "drift_of_p_values",
    "require_serving",
    "serve_app",
]

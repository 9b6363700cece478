"""HTTP service that gives verdicts, and a monitor of the stream of scores. FastAPI is loaded where an app is made."""

from opnp.serve.app import require_serving, serve_app
from opnp.serve.drift import DriftSummary
from opnp.serve.limits import DEFAULT_LIMITS, Limits
from opnp.serve.monitor import DriftMonitor
from opnp.serve.p_value_stream import drift_of_p_values

__all__ = [
    "DEFAULT_LIMITS",
    "DriftMonitor",
    "DriftSummary",
    "Limits",
    "drift_of_p_values",
    "require_serving",
    "serve_app",
]

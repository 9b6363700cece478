"""Is a stream of scores still in distribution? A test that is valid at any time, with a bound on false alarms."""

from opnp.monitor.drift import DriftSummary
from opnp.monitor.p_values import drift_of_p_values
from opnp.monitor.stream import DriftMonitor

__all__ = ["DriftMonitor", "DriftSummary", "drift_of_p_values"]

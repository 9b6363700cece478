"""Protocols: which data, which methods, which figures."""

from opnp.bench.demo import run_demo
from opnp.bench.record import DetectionResult, MethodResult, Record

__all__ = ["DetectionResult", "MethodResult", "Record", "run_demo"]

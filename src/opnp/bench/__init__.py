"""Protocols: which data, which methods, which figures."""

from opnp.bench.bench_record import (
    BENCH_RECORD_VERSION,
    BenchRecord,
    ClassifierFigures,
    DataSource,
    DetectionFigures,
    MethodRow,
    ModelResult,
)
from opnp.bench.demo import run_demo
from opnp.bench.protocol import run_bench
from opnp.bench.published import PublishedSetting, published_settings
from opnp.bench.record import DetectionResult, MethodResult, Record
from opnp.bench.tables import results_markdown

__all__ = [
    "BENCH_RECORD_VERSION",
    "BenchRecord",
    "ClassifierFigures",
    "DataSource",
    "DetectionFigures",
    "DetectionResult",
    "MethodResult",
    "MethodRow",
    "ModelResult",
    "PublishedSetting",
    "Record",
    "published_settings",
    "results_markdown",
    "run_bench",
    "run_demo",
]

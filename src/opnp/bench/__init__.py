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
from opnp.bench.caching import CacheReport, cache_features
from opnp.bench.demo import run_demo
from opnp.bench.figures import classifier_figures, detection_figures, mean_figures
from opnp.bench.fit_recording import record_fit
from opnp.bench.forward import Forward
from opnp.bench.model_source import chosen_preprocessing, folder_name, model_from_name
from opnp.bench.protocol import require_bench, run_bench
from opnp.bench.published import PublishedSetting, published_settings
from opnp.bench.record import DetectionResult, MethodResult, Record
from opnp.bench.selection import includes_odin
from opnp.bench.sweep import run_sweep
from opnp.bench.sweep_curves import BASE_RATIOS, PAPER_RATIOS
from opnp.bench.sweep_record import (
    SWEEP_RECORD_VERSION,
    HeadFigures,
    SweepBase,
    SweepCurve,
    SweepPoint,
    SweepRecord,
    SweepSettings,
    SweptModel,
)
from opnp.bench.sweep_tables import sweep_markdown
from opnp.bench.tables import results_markdown

__all__ = [
    "BASE_RATIOS",
    "BENCH_RECORD_VERSION",
    "PAPER_RATIOS",
    "SWEEP_RECORD_VERSION",
    "BenchRecord",
    "CacheReport",
    "ClassifierFigures",
    "DataSource",
    "DetectionFigures",
    "DetectionResult",
    "Forward",
    "HeadFigures",
    "MethodResult",
    "MethodRow",
    "ModelResult",
    "PublishedSetting",
    "Record",
    "SweepBase",
    "SweepCurve",
    "SweepPoint",
    "SweepRecord",
    "SweepSettings",
    "SweptModel",
    "cache_features",
    "chosen_preprocessing",
    "classifier_figures",
    "detection_figures",
    "folder_name",
    "includes_odin",
    "mean_figures",
    "model_from_name",
    "published_settings",
    "record_fit",
    "require_bench",
    "results_markdown",
    "run_bench",
    "run_demo",
    "run_sweep",
    "sweep_markdown",
]

"""Protocols: which data, which methods, which figures.

As in `opnp` itself, a name is imported when it is first used: reports read the records here, and need no torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_NAMES_OF = {
    "opnp.bench.bench_record": (
        "BENCH_RECORD_VERSION",
        "BenchRecord",
        "ClassifierFigures",
        "DataSource",
        "DetectionFigures",
        "MethodRow",
        "ModelResult",
    ),
    "opnp.bench.caching": (
        "CacheReport",
        "cache_features",
    ),
    "opnp.bench.demo": ("run_demo",),
    "opnp.bench.figures": (
        "classifier_figures",
        "detection_figures",
        "mean_figures",
    ),
    "opnp.bench.fit_recording": ("record_fit",),
    "opnp.bench.forward": ("Forward",),
    "opnp.bench.model_source": (
        "chosen_preprocessing",
        "folder_name",
        "model_from_name",
    ),
    "opnp.bench.protocol": (
        "require_bench",
        "run_bench",
    ),
    "opnp.bench.published": (
        "PublishedSetting",
        "published_settings",
    ),
    "opnp.bench.record": (
        "DetectionResult",
        "MethodResult",
        "Record",
    ),
    "opnp.bench.selection": ("includes_odin",),
    "opnp.bench.sweep": ("run_sweep",),
    "opnp.bench.sweep_curves": (
        "BASE_RATIOS",
        "PAPER_RATIOS",
    ),
    "opnp.bench.sweep_record": (
        "SWEEP_RECORD_VERSION",
        "HeadFigures",
        "SweepBase",
        "SweepCurve",
        "SweepPoint",
        "SweepRecord",
        "SweepSettings",
        "SweptModel",
    ),
    "opnp.bench.sweep_tables": ("sweep_markdown",),
    "opnp.bench.tables": ("results_markdown",),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}

if not TYPE_CHECKING:  # else every misspelt name would have a type

    def __getattr__(name: str) -> object:
        """Return a public name, imported now; the next time it is simply there."""
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'opnp.bench' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        globals()[name] = value = getattr(import_module(_MODULE_OF[name]), name)
        return value

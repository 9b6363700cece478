"""Protocols: which data, which methods, which figures."""

from opnp.bench.cache import CacheReport, Forward, cache_features
from opnp.bench.demo import run_demo
from opnp.bench.figures import classifier_figures, detection_figures
from opnp.bench.methods import PRUNED_RATIOS, PublishedSetting, includes_odin, published_settings
from opnp.bench.records import record_fit
from opnp.bench.run import require_bench, run_bench
from opnp.bench.sweep import BASE_RATIOS, PAPER_RATIOS, run_sweep
from opnp.bench.tables import results_markdown, sweep_markdown

__all__ = [
    "BASE_RATIOS",
    "PAPER_RATIOS",
    "PRUNED_RATIOS",
    "CacheReport",
    "Forward",
    "PublishedSetting",
    "cache_features",
    "classifier_figures",
    "detection_figures",
    "includes_odin",
    "published_settings",
    "record_fit",
    "require_bench",
    "results_markdown",
    "run_bench",
    "run_demo",
    "run_sweep",
    "sweep_markdown",
]

"""Files in and out: cached features, heads, score tables."""

from opnp.data.features import FeatureSet, LinearHead, read_features, read_head, write_features, write_head
from opnp.data.score_table import write_score_table

__all__ = [
    "FeatureSet",
    "LinearHead",
    "read_features",
    "read_head",
    "write_features",
    "write_head",
    "write_score_table",
]

"""Files in and out: images and texts, weights, cached features whole or in shards, heads, score tables."""

from opnp.data.digest import file_digest
from opnp.data.features import FeatureSet, LinearHead, read_features, read_head, write_features, write_head
from opnp.data.input_set import InputSet, unreadable_summary
from opnp.data.input_source import InputSource
from opnp.data.mapped import MappedFeatures, open_features
from opnp.data.open_inputs import open_inputs
from opnp.data.preprocessing import Interpolation, Preprocessing, require_pillow
from opnp.data.score_table import require_score_file, write_score_table
from opnp.data.shard_writer import FeatureShardWriter
from opnp.data.source import FeaturePart, FeatureSource, block_edges, feature_part
from opnp.data.train_and_test import train_and_test
from opnp.data.transform import ModelInputs, SampleKind, Transform, channel_std
from opnp.data.weights import load_weights, read_weights

__all__ = [
    "FeaturePart",
    "FeatureSet",
    "FeatureShardWriter",
    "FeatureSource",
    "InputSet",
    "InputSource",
    "Interpolation",
    "LinearHead",
    "MappedFeatures",
    "ModelInputs",
    "Preprocessing",
    "SampleKind",
    "Transform",
    "block_edges",
    "channel_std",
    "feature_part",
    "file_digest",
    "load_weights",
    "open_features",
    "open_inputs",
    "read_features",
    "read_head",
    "read_weights",
    "require_pillow",
    "require_score_file",
    "train_and_test",
    "unreadable_summary",
    "write_features",
    "write_head",
    "write_score_table",
]

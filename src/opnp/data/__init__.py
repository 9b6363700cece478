"""Files in and out: images, weights, cached features whole or in shards, heads, score tables."""

from opnp.data.digest import file_digest
from opnp.data.features import FeatureSet, LinearHead, read_features, read_head, write_features, write_head
from opnp.data.images import ImageSet, ImageSource, read_images
from opnp.data.mapped import MappedFeatures, open_features
from opnp.data.preprocessing import Interpolation, Preprocessing, require_pillow
from opnp.data.score_table import write_score_table
from opnp.data.shard_writer import FeatureShardWriter
from opnp.data.source import FeaturePart, FeatureSource, block_edges, feature_part
from opnp.data.train_and_test import train_and_test
from opnp.data.weights import load_weights, read_weights

__all__ = [
    "FeaturePart",
    "FeatureSet",
    "FeatureShardWriter",
    "FeatureSource",
    "ImageSet",
    "ImageSource",
    "Interpolation",
    "LinearHead",
    "MappedFeatures",
    "Preprocessing",
    "block_edges",
    "feature_part",
    "file_digest",
    "load_weights",
    "open_features",
    "read_features",
    "read_head",
    "read_images",
    "read_weights",
    "require_pillow",
    "train_and_test",
    "write_features",
    "write_head",
    "write_score_table",
]

"""Files in and out: images and texts, weights, cached features whole or in shards, heads, score tables."""

from opnp.data.features import (
    FeaturePart,
    FeatureSet,
    FeatureSource,
    LinearHead,
    MappedFeatures,
    block_edges,
    feature_names_of,
    feature_part,
    open_features,
    read_features,
    read_head,
    write_features,
    write_head,
)
from opnp.data.inputs import InputSet, InputSource, open_inputs, train_and_test, unreadable_summary
from opnp.data.samples import (
    Interpolation,
    ModelInputs,
    Preprocessing,
    SampleKind,
    Transform,
    channel_std,
    file_digest,
    require_pillow,
)
from opnp.data.shards import FeatureShardWriter
from opnp.data.tables import require_score_file, write_score_table
from opnp.data.weights import fitting_names, load_weights, read_weights

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
    "feature_names_of",
    "feature_part",
    "file_digest",
    "fitting_names",
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

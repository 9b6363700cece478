"""Names of the files in a folder of cached features. Standard library only."""

import re

__all__ = ["FEATURE_FILE"]

FEATURE_FILE = re.compile(r"(train|test|head|odin|ood_.+)\.safetensors")
"""What `opnp cache` writes into its folder."""

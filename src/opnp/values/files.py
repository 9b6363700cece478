"""Names of the files that commands write for one another."""

import re

__all__ = ["FEATURE_FILE", "FIT_FILE", "PICTURES_FILE", "RECORD_FILES", "RESULTS_FILE", "SWEEP_FILE"]

RESULTS_FILE = "results.json"
SWEEP_FILE = "sweep.json"
FIT_FILE = "fit.json"
PICTURES_FILE = "pictures.json"
RECORD_FILES = (RESULTS_FILE, SWEEP_FILE, FIT_FILE, PICTURES_FILE)
"""The records among results. A folder that holds one of them was written by opnp."""

FEATURE_FILE = re.compile(r"(train|test|head|odin|validation_ood|ood_.+)\.safetensors")
"""What `opnp cache` writes into its folder."""

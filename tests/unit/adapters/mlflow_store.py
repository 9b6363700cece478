"""A store of MLflow in a folder, without a server."""

from pathlib import Path

import pytest

__all__ = ["file_store"]


def file_store(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let MLflow keep runs and models in a folder, which it refuses by itself, unpickle nothing, and tell nobody."""
    patch.setenv("MLFLOW_TRACKING_URI", folder.as_uri())
    patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")

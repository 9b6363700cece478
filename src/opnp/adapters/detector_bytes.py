"""A fitted detector as bytes: its artifact, for toolkits that pickle what holds it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from opnp.detector import OPNP

__all__ = ["bytes_of", "detector_from"]


def bytes_of(detector: OPNP) -> bytes:
    """Return the file that `OPNP.save` writes: tensors and JSON, no model.

    Raises:
        NotFittedError: If the detector was not fitted.

    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        detector.save(path)
        return path.read_bytes()


def detector_from(data: bytes) -> OPNP:
    """Return the detector, without a model: it scores features.

    Raises:
        ArtifactError: If the bytes are those of no detector.

    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        path.write_bytes(data)
        return OPNP.load(path)

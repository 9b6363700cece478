"""Where the real data lie, and what to say where they do not."""

from pathlib import Path

import pytest

__all__ = ["DATA", "needs_data"]

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

needs_data = pytest.mark.skipif(
    not (DATA / "REFERENCE.md").is_file(),
    reason=f"the real data sets and models are not at {DATA}",
)

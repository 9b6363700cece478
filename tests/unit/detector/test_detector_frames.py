"""Features in data frames: columns are known by their names."""

import pandas as pd
import pytest
import torch

from opnp import OPNP
from opnp.errors import OptionError
from tests.unit.detector.detector_world import features, weight


def test_columns_of_a_data_frame_are_those_of_the_fit() -> None:
    frame = pd.DataFrame(features(300, seed=1).double().numpy(), columns=[f"column {place}" for place in range(12)])
    names = (*frame.columns,)
    detector = OPNP(members=["gen", "norm"]).fit_features(frame[:200], weight=weight().double(), bias=None)
    assert detector.feature_names == names
    detector.calibrate_features(frame[200:])
    expected = detector.score_features(frame)
    assert torch.equal(expected, detector.score_features(frame.to_numpy()))
    other = frame[[*reversed(names)]]
    assert torch.equal(detector.score_features(other[[*detector.feature_names]]), expected)
    for call in (detector.score_features, detector.verdict_features, detector.calibrate_features):
        with pytest.raises(OptionError, match=r"in another order: take them by .*frame\[\[\*detector"):
            call(other)
        with pytest.raises(OptionError, match="other columns than the fit"):
            call(frame.rename(columns={names[3]: "foo"}))

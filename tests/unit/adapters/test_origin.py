"""A detector's model, opened again: other weights before the same head are noticed, whatever the head."""

from pathlib import Path

import pytest
import torch
from torch import nn

from opnp import OPNP, Ratios
from opnp.adapters import model_origin, require_same_weights
from opnp.data import Preprocessing
from opnp.errors import HeadMismatchError

INPUTS = Preprocessing(size=2, resize=2, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("logits", [1, 3])
def test_other_weights_before_the_same_head_are_noticed(logits: int) -> None:
    body = nn.Linear(4, 8)
    model = nn.Sequential(body, nn.ReLU(), nn.Linear(8, logits))
    detector = OPNP(ratios=Ratios()).fit(model, torch.randn(60, 4).split(20))
    classes = len(detector.sensitivity.weight)
    origin = model_origin(model, INPUTS, name="mine:net", weights=None, detector=Path("d.st"), classes=classes)
    require_same_weights(origin, model, head_sha256=detector.head_digest)
    with torch.no_grad():
        body.weight.mul_(2)
    with pytest.raises(HeadMismatchError, match="other weights elsewhere"):
        require_same_weights(origin, model, head_sha256=detector.head_digest)

"""One suite for every detector: what it does to the model, and what it answers."""

from collections.abc import Callable
from functools import partial

import pytest

from opnp import ASHS, MEMBERS, OPNP, SCALE, Ratios, ReAct
from tests.contract import answer_checks, cutting_checks, model_checks, state_checks
from tests.contract.model_checks import Make

TRIED = "checks of detectors under their settings"

pytestmark = pytest.mark.reliability

CHECKS: dict[str, Callable[[Make], None]] = {
    name: getattr(module, name)
    for module in (model_checks, answer_checks, cutting_checks, state_checks)
    for name in module.__all__
    if name.startswith("check_")
}

ALL = Ratios(w_min=0.3, w_max=0.05, o_min=0.1, o_max=0.1)
DETECTORS: dict[str, Make] = {
    "energy": partial(OPNP, ratios=Ratios()),
    "opp": partial(OPNP, ratios=Ratios(w_min=0.3, w_max=0.02)),
    "onp_gradient": partial(OPNP, ratios=Ratios(o_min=0.2, o_max=0.1), neuron="gradient"),
    "onp_aggregate": partial(OPNP, ratios=Ratios(o_min=0.2, o_max=0.1), neuron="aggregate"),
    "opnp": partial(OPNP, ratios=ALL),
    "opnp_class": partial(OPNP, ratios=ALL, scope="class"),
    "opnp_float64": partial(OPNP, ratios=ALL, precision="float64"),
    "opnp_class_float64": partial(
        OPNP, ratios=Ratios(w_min=0.2, o_min=0.1), scope="class", neuron="aggregate", precision="float64"
    ),
    "opnp_temperature": partial(OPNP, ratios=ALL, temperature=2.0),
    "opp_react": partial(OPNP, ratios=Ratios(w_min=0.3), shaping=ReAct(0.95)),
    "opp_ash_s": partial(OPNP, ratios=Ratios(w_min=0.3), shaping=ASHS(0.5)),
    "opp_scale": partial(OPNP, ratios=Ratios(w_min=0.3), shaping=SCALE(0.5)),
    "opp_msp": partial(OPNP, ratios=Ratios(w_min=0.3), score="msp"),
    "opp_max_logit": partial(OPNP, ratios=Ratios(w_min=0.3), score="max_logit"),
    "opp_entropy": partial(OPNP, ratios=Ratios(w_min=0.3), score="entropy"),
    "opp_gen": partial(OPNP, ratios=Ratios(w_min=0.3), score="gen"),
    "fusion": OPNP,
    "fusion_float64": partial(OPNP, precision="float64"),
    "fusion_of_two": partial(OPNP, members=["mahalanobis", "norm"]),
    "fusion_of_all": partial(OPNP, members=MEMBERS),
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("detector", DETECTORS)
def test_contract(detector: str, check: str) -> None:
    CHECKS[check](DETECTORS[detector])

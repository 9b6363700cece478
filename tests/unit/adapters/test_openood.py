"""The postprocessor for OpenOOD, driven as its evaluator drives one; OpenOOD is no package that could be installed."""

import pickle
import runpy
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]  # the package ships no types
from torch import Tensor, nn

from opnp import OPNP, SCALE, Ratios, auroc
from opnp.adapters import openood as adapter
from opnp.adapters.openood import CONFIG_FILE, OPNPPostprocessor
from opnp.adapters.toolkits import OPTION_DEFAULTS
from opnp.errors import (
    EmptyDataError,
    HeadMismatchError,
    InputTypeError,
    NotFittedError,
    OptionError,
    RatioError,
    ShapeError,
)
from tests.contract.snapshot import unchanged
from tests.unit.adapters.encoder_world import WIDTH, Batches, Net, batches, inputs_and_labels

TRAIN, ID_VALIDATION, ID_TEST = (inputs_and_labels(rows, seed=seed) for seed, rows in enumerate((160, 60, 70)))
OOD_VALIDATION, NEAR, FAR = (
    inputs_and_labels(50, seed=3 + place, shift=shift)[0] for place, shift in enumerate((-0.5, 0.2, -0.9))
)
SWEEP: dict[str, list[Any]] = {"w_min_list": [0.0, 0.25, 0.6], "o_max": [0.0, 0.25], "scope_list": ["layer", "class"]}


def configured(*, sweep: dict[str, Any] | None = None, is_searching: bool = False, **options: object) -> dict[str, Any]:
    """Return a configuration with these options."""
    arguments = {"w_min": 0.0, **options}
    return {
        "postprocessor": {
            "name": "opnp",
            "APS_mode": is_searching,
            "postprocessor_args": arguments,
            "postprocessor_sweep": sweep or {},
        }
    }


def loaders() -> dict[str, Any]:
    return {
        "id": {"train": batches(*TRAIN), "val": batches(*ID_VALIDATION), "test": batches(*ID_TEST)},
        "ood": {"val": batches(OOD_VALIDATION), "near": {"near_set": batches(NEAR)}, "far": {"far_set": batches(FAR)}},
    }


def set_up(net: nn.Module, **options: Any) -> OPNPPostprocessor:
    postprocessor = OPNPPostprocessor(configured(**options))
    postprocessor.setup(net, loaders()["id"], loaders()["ood"])
    return postprocessor


def reference(net: Net, **ratios: Any) -> OPNP:
    """Return the detector of this project, which finds the head by itself."""
    scope = ratios.pop("scope", "layer")
    return OPNP(ratios=Ratios(**ratios), scope=scope, shaping=None).fit(net, [part for part, _ in pairs(TRAIN)])


def pairs(samples: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(samples[0].split(16), samples[1].split(16), strict=True)


def scores(net: nn.Module, postprocessor: OPNPPostprocessor, loader: Batches) -> Tensor:
    """Return minus the confidences that the evaluator gets, which gives progress by position."""
    predicted, confidence, label = postprocessor.inference(net, loader, False)
    assert len(predicted) == len(confidence) == len(label) == sum(len(batch["data"]) for batch in loader)
    assert predicted.dtype.kind == label.dtype.kind == "i"
    return -torch.from_numpy(confidence)


def searched(
    net: nn.Module, postprocessor: OPNPPostprocessor, loaders: dict[str, Any]
) -> dict[tuple[object, ...], float]:
    """Return the AUROC of every combination, tried as the evaluator does it: the first name changes fastest."""
    postprocessor.setup(net, loaders["id"], loaders["ood"])
    trials: dict[Any, float] = {}
    for values in product(*reversed(list(postprocessor.args_dict.values()))):
        postprocessor.set_hyperparam(values[::-1])
        trials[values[::-1]] = auroc(*(scores(net, postprocessor, loaders[kind]["val"]) for kind in ("id", "ood")))
    postprocessor.set_hyperparam(list(max(trials, key=lambda values: trials[values])))
    postprocessor.hyperparam_search_done = True
    return trials


def test_the_evaluator_finds_the_best_of_the_sweep() -> None:
    net, postprocessor = Net(), OPNPPostprocessor(configured(sweep=SWEEP, is_searching=True))
    expected = {}
    for w_min, o_max, scope in product(*SWEEP.values()):
        detector = reference(net, w_min=w_min, o_max=o_max, scope=scope)
        expected[w_min, o_max, scope] = auroc(detector.score(ID_VALIDATION[0]), detector.score(OOD_VALIDATION))
    set_up(Net(seed=1))  # the first setup imports packages that set filters of warnings
    with unchanged(net, "the evaluation"):
        train = iter(batches(*TRAIN))
        trials = searched(net, postprocessor, {**loaders(), "id": {**loaders()["id"], "train": train}})
        found = [scores(net, postprocessor, batches(*samples)) for samples in (ID_TEST, (NEAR,), (FAR,))]
    assert trials == pytest.approx(expected, abs=1e-6)
    assert len(set(trials.values())) > 6
    best = max(expected, key=expected.__getitem__)
    assert postprocessor.get_hyperparam() == list(best)
    detector = reference(net, w_min=best[0], o_max=best[1], scope=best[2])
    for ours, inputs in zip(found, (ID_TEST[0], NEAR, FAR), strict=True):
        torch.testing.assert_close(ours, detector.score(inputs).to(ours), rtol=1e-5, atol=1e-6)


def test_progress_is_shown_unless_it_is_not_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    net = Net()
    postprocessor = set_up(net, w_min=0.8)
    capsys.readouterr()
    postprocessor.inference(net, batches(*ID_TEST), False)
    assert capsys.readouterr().out == ""
    postprocessor.inference(net, batches(*ID_TEST))
    assert "100%" in capsys.readouterr().out


def test_set_up_again_it_takes_another_head_and_leaves_its_own() -> None:
    first, second = Net(), Net(seed=1)
    postprocessor = set_up(first, w_min=0.3)
    before = postprocessor.opnp
    postprocessor.setup(first, {"train": []}, {})
    assert postprocessor.opnp is before
    with pytest.raises(HeadMismatchError, match="call `setup` with this net"):
        postprocessor.postprocess(second, ID_TEST[0])
    postprocessor.setup(second, loaders()["id"], {})
    assert postprocessor.opnp.masks.kept.equal(reference(second, w_min=0.3).masks.kept)
    postprocessor.setup_flag = False
    with pytest.raises(EmptyDataError):
        postprocessor.setup(second, {"train": []}, {})


def test_pickled_it_holds_no_net_and_answers_alike() -> None:
    net = Net()
    postprocessor = set_up(net, sweep=SWEEP, w_min=0.25)
    data = pickle.dumps(postprocessor)
    assert b"encoder_world" not in data
    loaded: OPNPPostprocessor = pickle.loads(data)  # noqa: S301  # its own bytes
    loaded.setup(net, {"train": []}, {})  # stored by OpenOOD's scripts, it is set up again
    for each in (loaded, postprocessor):
        each.set_hyperparam([0.6, 0.25, "class"])
    assert loaded.postprocess(net, FAR)[1].equal(postprocessor.postprocess(net, FAR)[1])
    blank: OPNPPostprocessor = pickle.loads(pickle.dumps(OPNPPostprocessor()))  # noqa: S301  # as above
    with pytest.raises(NotFittedError, match="call `setup"):
        blank.postprocess(net, FAR)


def test_the_file_is_in_openoods_format_and_holds_the_defaults() -> None:
    config = yaml.safe_load(CONFIG_FILE.read_text(encoding="utf-8"))
    section = config["postprocessor"]
    assert list(config) == ["postprocessor"]
    assert list(section) == ["name", "APS_mode", "postprocessor_args", "postprocessor_sweep"]
    assert section["name"] == "opnp"
    assert set(section["postprocessor_args"]) == set(OPTION_DEFAULTS)
    by_file, by_default = OPNPPostprocessor(config), OPNPPostprocessor()
    for each in (by_file, by_default):
        assert each.APS_mode is False
        assert each.hyperparam_search_done is False
        assert each.options == OPTION_DEFAULTS
        assert each.options == section["postprocessor_args"]
        assert each.args_dict == section["postprocessor_sweep"]
        for values in product(*each.args_dict.values()):
            each.set_hyperparam(values)


class Config(dict[str, Any]):
    """A mapping whose items are attributes, None where there is none, as OpenOOD's is."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)


def test_a_configuration_may_be_a_mapping_or_an_object() -> None:
    arguments, sweep = {"w_min": 0.4}, {"w_min_list": [0.4, 0.5]}
    section = {"APS_mode": True, "postprocessor_args": arguments, "postprocessor_sweep": sweep}
    nested = SimpleNamespace(
        postprocessor=SimpleNamespace(
            APS_mode=True, postprocessor_args=SimpleNamespace(**arguments), postprocessor_sweep=SimpleNamespace(**sweep)
        )
    )
    for config in ({"postprocessor": section}, Config(postprocessor=Config(section)), nested):
        found = OPNPPostprocessor(config)
        assert found.config is config
        assert (found.APS_mode, found.options["w_min"], found.args_dict) == (True, 0.4, sweep)
    shaped = OPNPPostprocessor(configured(shaping={"name": "scale", "quantile": 0.85}))
    net = Net()
    shaped.setup(net, loaders()["id"], {})
    assert shaped.opnp.settings.shaping == SCALE(0.85)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentile": 90}, r"Options must be among w_min.*got percentile"),
        ({"sweep": {"temperature_list": [1.0]}}, r"Options must be among w_min, .*, scope, got temperature"),
        ({"sweep": {"w_min_list": []}}, "`w_min_list` of `postprocessor_sweep` must hold values"),
        ({"is_searching": True}, "with APS_mode, must hold values"),
        ({"shaping": {"name": "dice", "quantile": 0.5}}, "`shaping` must be"),
    ],
)
def test_what_would_change_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        OPNPPostprocessor(configured(**options))


def test_values_are_set_all_or_none() -> None:
    found = OPNPPostprocessor(configured(sweep={"w_min": [0.1], "w_max": [0.1]}))
    with pytest.raises(OptionError, match="a value for each of w_min, w_max, got 1 values"):
        found.set_hyperparam([0.5])
    with pytest.raises(RatioError, match="sum to 1"):
        found.set_hyperparam([0.5, 0.5])
    assert found.get_hyperparam() == [0.0, None]


def test_a_search_is_one_over_ratios_of_the_papers_method() -> None:
    net, sweep = Net(), {"w_min_list": [0.0, 0.25, 0.6]}
    postprocessor = OPNPPostprocessor(configured(sweep=sweep, is_searching=True, w_min=None))
    searched(net, postprocessor, loaders())
    (best,) = postprocessor.get_hyperparam()
    assert best in sweep["w_min_list"]
    assert postprocessor.opnp.members == ("opnp",)
    assert postprocessor.postprocess(net, FAR)[1].equal(set_up(net, w_min=best).postprocess(net, FAR)[1])


def test_ratios_given_to_a_fusion_need_another_setup() -> None:
    net = Net()
    postprocessor = set_up(net, w_min=None, sweep={"w_min_list": [0.25]})
    postprocessor.set_hyperparam([0.25])
    with pytest.raises(NotFittedError, match="take another pass each: fit again"):
        postprocessor.postprocess(net, FAR)


class Listing(Net):
    """Gives features in a list with maps, as OpenOOD's DenseNet does."""

    def forward(self, inputs: Tensor, return_feature: bool = False) -> Any:
        features = self.features(inputs)
        logits = self.fc(features.flatten(1))
        return (logits, [features.flatten(1), inputs, self.body(inputs)]) if return_feature else logits


class Convolving(Net):
    """Has a head of 1 x 1 and gives features as maps."""

    def forward(self, inputs: Tensor, return_feature: bool = False) -> Any:
        return inputs, self.features(inputs)

    def get_fc(self) -> tuple[object, object]:
        weight, bias = super().get_fc()
        return torch.as_tensor(weight)[:, :, None, None], bias


@pytest.mark.parametrize(
    ("net", "is_wrapped"),
    [(Net(), True), (Net(is_biased=False), False), (Listing(), False), (Convolving(), False)],
    ids=["wrapped", "no bias", "list", "convolution"],
)
def test_nets_of_every_kind_are_read(net: Net, is_wrapped: bool) -> None:
    used = nn.DataParallel(net) if is_wrapped else net
    with unchanged(used, "setup and inference"):
        confidence = set_up(used, w_min=0.3).inference(used, batches(FAR), False)[1]
    weight, bias = net.fc.weight, net.fc.bias
    expected = OPNP(ratios=Ratios(w_min=0.3)).fit_features(net.quiet_features(TRAIN[0]), weight=weight, bias=bias)
    torch.testing.assert_close(
        torch.from_numpy(confidence), -expected.score_features(net.quiet_features(FAR)), rtol=1e-5, atol=1e-5
    )


class Answering(Net):
    """Gives anything at all beside its logits."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, inputs: Tensor, return_feature: bool = False) -> Any:
        return self.output


WIDE = torch.zeros(16, WIDTH + 1)


@pytest.mark.parametrize(
    ("net", "error", "message"),
    [
        (nn.Linear(2, 2), InputTypeError, r"`net` must have `get_fc\(\)`.*got Linear"),
        (Answering(WIDE), InputTypeError, "must return logits and features, got Tensor"),
        (Answering([WIDE] * 3), InputTypeError, "got list"),
        (
            Answering((WIDE, [WIDE, torch.zeros(WIDTH)])),
            ShapeError,
            rf"shape \(batch, {WIDTH}\), got \(16, {WIDTH + 1}\), \({WIDTH},\)",
        ),
        (Answering((WIDE, ["features"])), ShapeError, "got no tensor"),
    ],
)
def test_nets_of_another_kind_are_refused(net: nn.Module, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        set_up(net)


def test_batches_of_another_kind_are_refused_and_labels_may_be_missing() -> None:
    net = Net()
    postprocessor = set_up(net)
    bare: Batches = [{"data": ID_TEST[0]}]
    postprocessor.setup_flag = False
    postprocessor.setup(net, {"train": bare}, {})
    assert postprocessor.opnp.sensitivity.count == 70
    assert set(postprocessor.inference(net, bare, False)[2].tolist()) == {-1}
    for batch in ([ID_TEST], [{"image": ID_TEST[0]}]):
        with pytest.raises(InputTypeError, match="A batch must be a mapping with tensors `data` and `label`"):
            postprocessor.inference(net, batch, False)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(EmptyDataError, match="`data_loader` yields no batch"):
        postprocessor.inference(net, [], False)


def test_where_openood_is_installed_its_base_class_is_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert adapter.OPNPPostprocessor.__mro__[1].__module__ == "opnp.adapters.openood"
    package = tmp_path / "openood"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "postprocessors.py").write_text(
        "class BasePostprocessor:\n    def __init__(self, config):\n        self.config = config\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    net, config = Net(), configured(w_min=0.3)
    try:
        again = runpy.run_path(str(adapter.__file__))["OPNPPostprocessor"](config)
    finally:
        for name in ("openood", "openood.postprocessors"):
            sys.modules.pop(name, None)
    assert type(again).__mro__[1].__module__ == "openood.postprocessors"
    assert again.config is config
    again.setup(net, loaders()["id"], {})
    assert again.postprocess(net, FAR)[1].equal(set_up(net, w_min=0.3).postprocess(net, FAR)[1])

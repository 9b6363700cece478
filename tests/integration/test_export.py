"""Detectors as ONNX files: the numbers of onnxruntime beside torch's."""

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]  # the package ships no types
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from opnp import MEMBERS, OPNP, Ratios
from opnp.core import ASHS, SCALE, SCORE_NAMES, Precision, ReAct, ScoreName, Shaping
from opnp.core.members import member_scores
from opnp.errors import MissingExtraError, ModelRunError, OptionError
from opnp.export import FeatureJudge, files, write_onnx, write_program
from opnp.export.files import arguments
from opnp.model import Inputs, run_model
from tests.real.locations import DATA
from tests.tried import Tried
from tests.unit.detector.detector_world import features, loader, model

CLASSES = 10
Read = Mapping[str, np.ndarray[Any, Any]]


def images(rows: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return images whose classes are patterns under noise of unlike strength, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    noise = torch.rand(rows, 1, 1, 1, generator=generator) * 2 * torch.randn(rows, 3, 32, 32, generator=generator)
    return patterns[labels].repeat_interleave(4, 2).repeat_interleave(4, 3) + noise, labels


def sentences(rows: int, *, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return tokens of unlike lengths, the first of which say the class, and the classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    ids = torch.randint(3, 50, (rows, 9), generator=generator)
    ids[:, :4] = 3 + 4 * labels[:, None] + torch.randint(4, (rows, 4), generator=generator)
    mask = (torch.arange(9) < torch.arange(rows)[:, None] % 5 + 4).long()
    return {"input_ids": ids * mask, "attention_mask": mask}, labels


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 64, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, CLASSES),
    )


def vit() -> nn.Module:
    net: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=CLASSES, depth=2)
    return net


def text() -> nn.Module:
    options: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_labels": CLASSES}
    options |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    net: nn.Module = transformers.BertForSequenceClassification(transformers.BertConfig(**options))
    return net


def trained(net: nn.Module, *, rate: float, data: Callable[..., tuple[Inputs, Tensor]] = images) -> nn.Module:
    """Return the model after a few steps, so that its scores spread."""
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    net.train()
    for step in range(30):
        inputs, labels = data(32, seed=step)
        optimizer.zero_grad()
        output: Any = run_model(net, inputs, device=None)
        nn.functional.cross_entropy(getattr(output, "logits", output), labels).backward()
        optimizer.step()
    return net.eval()


def check_close(found: Tensor, scores: Tensor, detector: OPNP) -> None:
    """Check fused scores S to 1e-5 times 1 + |S|, and verdicts except where S is as close to the threshold."""
    allowed = 1e-5 * (1 + scores.abs())
    off = torch.where(found == scores, 0.0, (found - scores).abs())  # two infinities are equal
    assert bool((off <= allowed).all() & (found.isfinite() == scores.isfinite()).all()), float((off / allowed).amax())
    judged, is_close = detector._calibration().is_ood, (scores - detector.threshold).abs() <= allowed
    assert torch.equal(judged(found)[~is_close], judged(scores)[~is_close])


def read(path: Path, **inputs: Tensor) -> Read:
    """Return what onnxruntime makes of a file."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: value.numpy() for name, value in inputs.items()}), strict=True))


def check_equal(found: Read, detector: OPNP, net: nn.Module, inputs: Tensor) -> None:
    """Check that logits and scores are torch's to 1e-5, and p-values and verdicts exactly those of the scores."""
    with torch.no_grad():
        logits = net(inputs)
    assert torch.from_numpy(found["logits"]).allclose(logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
    scores = detector.score(inputs)
    assert torch.from_numpy(found["score"]).allclose(scores, rtol=0, atol=1e-5 * float(scores.abs().max()))
    own = torch.from_numpy(found["score"])
    assert torch.equal(torch.from_numpy(found["p_value"]), detector._calibration().p_value(own))
    assert torch.equal(torch.from_numpy(found["is_ood"]), detector._calibration().is_ood(own))


@pytest.mark.slow
def test_onnxruntime_gives_the_numbers_of_torch_at_any_batch_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = trained(vit(), rate=1e-3)
    detector = OPNP(ratios=Ratios(w_min=0.3, o_max=0.02), shaping=None)
    detector.fit(net, [images(100, seed=100)]).calibrate([images(200, seed=101)])
    path = tmp_path / "detector.onnx"
    write_onnx(path, detector.to_module(), images(2, seed=102)[0])
    inputs = torch.cat([images(17, seed=103)[0], torch.zeros(1, 3, 32, 32), 0.2 * torch.randn(2, 3, 32, 32)])
    scores = detector.score(inputs)
    assert float(scores.std()) > 0.1, "scores do not spread, so that equal ones mean little"
    assert 0 < int(detector.predict(inputs).sum()) < len(inputs)
    name = onnx.load(path).graph.input[0].name
    for count in (1, 5, 17, len(inputs)):
        found = read(path, **{name: inputs[-count:]})
        check_equal(found, detector, net, inputs[-count:])
    assert [item.name for item in tmp_path.iterdir()] == ["detector.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "rate", "data"),
    [
        pytest.param(cnn, 1e-2, images, id="cnn"),
        pytest.param(text, 3e-3, sentences, id="text"),
        pytest.param(vit, 1e-3, images, id="vit", marks=pytest.mark.long),
    ],
)
def test_files_of_a_fusion_give_its_scores_and_verdicts(
    make: Callable[[], nn.Module], rate: float, data: Callable[..., tuple[Inputs, Tensor]], tmp_path: Path, tried: Tried
) -> None:
    tried("models", "models trained and exported with a fusion, run beside torch")
    torch.manual_seed(0)
    net = trained(make(), rate=rate, data=data)
    detector = OPNP().fit(net, [data(100, seed=seed)[0] for seed in range(100, 105)])
    detector.calibrate([data(200, seed=200)[0]])
    assert not detector.left_out
    example, ordinary = data(2, seed=300)[0], data(41, seed=301)[0]
    assert 0 < int(detector.predict(ordinary).sum()) < 41
    write_onnx(tmp_path / "detector.onnx", detector.to_module(), example)
    module = detector.to_module()
    write_program(tmp_path / "detector.pt2", module, example)
    program = torch.export.load(tmp_path / "detector.pt2").module()
    names = [item.name for item in onnx.load(tmp_path / "detector.onnx").graph.input]
    far = [10 * ordinary, 1e4 * ordinary, 0 * ordinary] if isinstance(ordinary, Tensor) else []
    for inputs in (ordinary, *far):
        scores = detector.score(inputs)
        args, named = arguments(module, inputs)
        feeds = dict(zip(names, (*args, *named.values()), strict=True))
        found = read(tmp_path / "detector.onnx", **feeds)
        check_close(torch.from_numpy(found["score"]), scores, detector)
        check_close(program(*args, **named)[1], scores, detector)
        own = torch.from_numpy(found["score"])
        assert torch.equal(torch.from_numpy(found["p_value"]), detector._calibration().p_value(own))
        assert torch.equal(torch.from_numpy(found["is_ood"]), detector._calibration().is_ood(own))


class Units(nn.Module):
    """What a graph says of features: of each member, and in all."""

    def __init__(self, judge: FeatureJudge) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.judge.units(rows), *self.judge(rows)


Head = tuple[Tensor, Tensor, Tensor | None]
"""Features, and the weight and bias that they go to."""


def made_up(classes: int) -> Head:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(classes, 24, generator=generator), torch.randn(classes, generator=generator)
    return 0.3 * torch.rand(840, 24, generator=generator) + weight[torch.arange(840) % 10].relu(), weight, bias


def of_mlperf() -> Head:
    folder = DATA / "features" / "mlperf_resnet8_large_cifar10"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    head = load_file(folder / "head.safetensors")
    rows = load_file(folder / "train.safetensors")["features"][:2000].float()
    return rows, head["weight"].float(), head["bias"].float()


HEADS: dict[str, Callable[[], Head]] = {
    "few classes": lambda: made_up(10),
    "many classes": lambda: made_up(2060),
    "mlperf": of_mlperf,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "precision"),
    [
        ("few classes", "float64"),
        ("many classes", "float32"),
        ("mlperf", "float32"),
        pytest.param("few classes", "float32", marks=pytest.mark.long),
        pytest.param("mlperf", "float64", marks=pytest.mark.long),
    ],
)
def test_every_member_keeps_its_numbers_in_onnx_and_in_a_program(head: str, precision: Precision, tried: Tried) -> None:
    """Members to 1e-5, and twice what float32 itself loses of them; the score they are fused to to 1e-5."""
    tried("numerics", "heads exported with all members, run beside torch")
    rows, weight, bias = HEADS[head]()
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    detector = OPNP(members=MEMBERS, precision=precision)
    detector.fit_features(rows[:600], weight=weight, bias=bias).calibrate_features(rows[600:800])
    assert detector.members == MEMBERS
    state, graph = detector._fitted(), Units(FeatureJudge(detector._fitted())).eval()
    assert state.panel is not None
    in_float64 = state.panel.mapped(torch.Tensor.double).with_boundaries()
    program = torch.export.export(graph, (rows[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    exported: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    name = session.get_inputs()[0].name
    ordinary = torch.cat([rows[800:830], rows.std() * torch.randn(10, rows.shape[1])])
    step = rows.abs().amax() / 4
    batches = {
        "ordinary": ordinary,
        **{f"times {factor:g}": factor * ordinary for factor in (30, -1, 1e6, 1e-6, 1e30)},
        "zero": 0 * ordinary,
        "tied": (ordinary / step).round() * step,
        "equal": ordinary.mean(1, keepdim=True).expand_as(ordinary).contiguous(),
    }
    for kind, batch in batches.items():
        units, scores = state._units(state.member_scores(batch, MEMBERS)), detector.score_features(batch)
        loss = (units - state._units(member_scores(batch.double(), in_float64, MEMBERS))).nan_to_num(0.0).abs()
        allowed = 1e-5 * (1 + units.abs().maximum(scores.abs()[:, None])) + 2 * loss.amax(0)
        onnx_found = [torch.from_numpy(values) for values in session.run(None, {name: batch.numpy()})]
        for found in (onnx_found, program.module()(batch)):
            off = torch.where(found[0] == units, 0.0, (found[0] - units).abs())
            worst = dict(zip(MEMBERS, (off / allowed).amax(0).tolist(), strict=True))
            assert max(worst.values()) <= 1, f"{kind} features: {worst}"
            check_close(found[1], scores, detector)
            assert torch.equal(found[2], detector._calibration().p_value(found[1]))
            assert torch.equal(found[3], detector._calibration().is_ood(found[1]))
    broken = torch.cat([ordinary[:3], torch.full((2, rows.shape[1]), torch.nan)])
    broken[4] = torch.inf
    _, score, p_value, is_ood = map(torch.from_numpy, session.run(None, {name: broken.numpy()}))
    assert score.isnan().tolist() == [False] * 3 + [True] * 2
    assert is_ood[3:].tolist() == [True] * 2
    assert p_value[3:].tolist() == [1 / 201] * 2


def test_a_file_with_fifty_thousand_calibration_scores_says_what_it_is(tmp_path: Path) -> None:
    net = model()
    detector = OPNP(ratios=Ratios(w_min=0.3), shaping=None).fit(net, loader())
    detector.calibrate_features(features(50_000, seed=5), keep=0.99)
    path = tmp_path / "detector.onnx"
    write_onnx(path, detector.to_module(), features(2))
    assert path.stat().st_size < 4 * 50_000 + 40_000
    check_equal(read(path, input=features(64, seed=6)), detector, net, features(64, seed=6))
    found = onnx.load(path)
    facts = {item.key: item.value for item in found.metadata_props}
    assert facts["opnp_keep"] == "0.99"
    assert float(facts["opnp_threshold"]) == detector.threshold
    assert facts["opnp_head_sha256"] == detector.head_digest
    assert facts["opnp_calibration_samples"] == "50000"
    assert json.loads(facts["opnp_settings"]) == detector.settings.to_json()
    assert facts["opnp_version"]
    assert [item.name for item in found.graph.output] == ["logits", "score", "p_value", "is_ood"]
    for item in (*found.graph.input, *found.graph.output):
        assert item.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert b"site-packages" not in path.read_bytes(), "the file names paths of this machine"


class Judges(nn.Module):
    """Many settings at once: one graph converts faster than one for each."""

    def __init__(self, judges: Iterable[FeatureJudge]) -> None:
        super().__init__()
        self.judges = nn.ModuleList(judges)

    def forward(self, rows: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [judge(rows) for judge in self.judges]


@pytest.mark.slow
def test_every_score_and_every_shaping_converts() -> None:
    cases: list[tuple[ScoreName, Shaping | None, Precision]] = [
        *(("energy", shaping, "float32") for shaping in (None, ReAct(0.9), ASHS(0.6), SCALE(0.6))),
        ("energy", SCALE(0.6), "float64"),
        *((score, SCALE(0.6), "float32") for score in SCORE_NAMES if score != "energy"),
        ("gen", None, "float64"),
    ]
    detectors = [
        OPNP(
            ratios=Ratios(w_min=0.3, o_max=0.1),
            shaping=shaping,
            score=score,
            temperature=2.5 if shaping is None else 1.0,
            precision=precision,
        )
        .fit(model(), loader())
        .calibrate(loader(5, seed=1), keep=0.5)
        for score, shaping, precision in cases
    ]
    judges = Judges(detector.to_module().judge for detector in detectors).eval()
    exported: Any = torch.onnx.export(
        judges, (features(2),), dynamic_shapes=({0: torch.export.Dim("batch")},), dynamo=True, verbose=False
    )
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
    rows = torch.cat([3 * features(30, seed=2), features(10, seed=3) / 100, torch.zeros(1, 12)])
    broken = rows.clone()
    broken[1, 0] = torch.nan
    for batch in (rows, broken):
        values = iter(session.run(None, {session.get_inputs()[0].name: batch.numpy()}))
        whole = batch.isfinite().all(1)
        for detector in detectors:
            score, p_value, is_ood = (torch.from_numpy(next(values)) for _ in range(3))
            expected = detector.score_features(batch[whole])
            assert float(expected.std()) > 1e-2
            torch.testing.assert_close(score[whole], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
            calibration = detector._calibration()
            assert torch.equal(p_value[whole], calibration.p_value(score[whole]))
            assert torch.equal(is_ood[whole], calibration.is_ood(score[whole]))
            assert 0 < int(is_ood[whole].sum()) < len(batch)
            assert bool(score[~whole].isnan().all() and is_ood[~whole].all() and (p_value[~whole] == 1 / 101).all())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ratios", "tensor_name", "unit"),
    [(Ratios(w_min=0.3), "judge.weight", "the largest"), (None, "judge.mean", r"1 \+ \|score\|")],
    ids=["paper", "fusion"],
)
def test_a_graph_with_other_numbers_is_not_written(
    ratios: Ratios | None, tensor_name: str, unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = OPNP(ratios=ratios).fit(model(), [features(300)]).calibrate([features(200, seed=1)])
    path = tmp_path / "detector.onnx"
    write_onnx(path, detector.to_module(), 3 * features(20))
    honest = path.read_bytes()
    for name, message in {
        tensor_name: rf" of {unit} lie between the graph's score and torch's, and 1e-05 is allowed. Nothing was",
        "1.bias": r" of the largest lie between the graph's logits and",
        "calibration": "p-values or verdicts are not those",
    }.items():
        proto = onnx.load_from_string(honest)
        (tensor,) = (item for item in proto.graph.initializer if item.name.endswith(name))
        tensor.CopyFrom(onnx.numpy_helper.from_array(1.01 * onnx.numpy_helper.to_array(tensor), tensor.name))
        made = proto.SerializeToString()
        monkeypatch.setattr(files, "_content", lambda *_, made=made, **__: made)
        with pytest.raises(ModelRunError, match=message):
            write_onnx(path, detector.to_module(), 3 * features(20))
        assert path.read_bytes() == honest
    monkeypatch.setattr(files, "_content", lambda *_, **__: b"nothing")
    with pytest.raises(ModelRunError, match=r"^onnxruntime refuses the graph of this model: [^\n]+$"):
        write_onnx(path, detector.to_module(), 3 * features(20))


def test_a_model_that_onnx_cannot_say_is_told_in_one_line(tmp_path: Path) -> None:
    class Special(nn.Module):
        """A model with an operation that ONNX has not."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = model()

        def forward(self, values: Tensor) -> Tensor:
            made: Tensor = self.inner(values + torch.special.bessel_j0(values))
            return made

    detector = OPNP(ratios=Ratios(w_min=0.3), shaping=None).fit(Special(), loader()).calibrate(loader(5, seed=1))
    with pytest.raises(ModelRunError, match=r"^torch\.onnx refuses this model: [^\n]+bessel[^\n]+$"):
        write_onnx(tmp_path / "detector.onnx", detector.to_module(), features(2))
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_or_too_large_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = OPNP(ratios=Ratios(w_min=0.3), shaping=None).fit(model(), loader()).calibrate(loader(5, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr(files, "_LARGEST", 100)
        with pytest.raises(OptionError, match="holds 2 GiB: use the torch format"):
            write_onnx(tmp_path / "detector.onnx", detector.to_module(), features(2))
    monkeypatch.setattr("opnp.errors.find_spec", lambda name: None if name == "onnxscript" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"need onnxscript, .*pip install 'opnp\[onnx\]'"):
        write_onnx(tmp_path / "detector.onnx", detector.to_module(), features(2))

"""The detectors of pytorch-ood, fed by this project, answer what their papers say: slow and obvious versions."""

import copy
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.adapters import BASELINE_NAMES, PytorchOodBaseline, baselines, odin_scores
from opnp.errors import EmptyDataError, InputTypeError, MissingExtraError, NotFittedError, OptionError, ShapeError
from tests.contract.snapshot import unchanged
from tests.unit.bench.bench_world import CLASSES, FEATURES, world_features, world_weight
from tests.unit.model.tiny_models import WithLogits, compiled

SETTINGS: dict[str, dict[str, float]] = {
    "DICE": {"p": 0.6},
    "KNN": {"k": 3},
    "ViM": {"d": 5},
    "GEN": {"gamma": 0.1, "M": 3},
    "NCI": {"alpha": 0.25},
    "NNGuide": {"k": 4},
    "ReAct": {"percentile": 0.8},
    "ASH-S": {"percentile": 0.75},
    "SCALE": {"percentile": 0.75},
}
TRAIN, LABELS = world_features(200, seed=0)
QUERY = world_features(30, seed=1, strength=1.0)[0]
WEIGHT = world_weight()
BIAS = torch.linspace(-1, 1, CLASSES)


def fitted(name: str, *, bias: Tensor | None = BIAS) -> PytorchOodBaseline:
    return PytorchOodBaseline(name, weight=WEIGHT, bias=bias, settings=SETTINGS.get(name)).fit(TRAIN, LABELS)


def logits_of(features: Tensor) -> Tensor:
    return linear(features.double(), WEIGHT.double(), BIAS.double())


def slow_energy(logits: Tensor) -> float:
    return -float(logits.exp().sum().log())


def slow_msp(row: Tensor) -> float:
    logits = logits_of(row)
    return -float(logits.max().exp() / logits.exp().sum())


def slow_gen(row: Tensor) -> float:
    clamped = torch.softmax(logits_of(row), 0).clamp(1e-7, 1 - 1e-7)  # as theirs does
    chances = sorted(clamped.tolist(), reverse=True)[:3]
    return (
        float(sum((chance * (1 - chance)) ** 0.1 for chance in chances)) / 3
    )  # their mean; the paper's sum orders alike


def slow_react(row: Tensor) -> float:
    return slow_energy(logits_of(row.double().clamp_max(float(torch.quantile(TRAIN.double().flatten(), 0.8)))))


def slow_scale(row: Tensor) -> float:
    ordered = sorted(row.tolist(), reverse=True)
    return slow_energy(logits_of(row.double() * float(torch.tensor(sum(ordered) / sum(ordered[:4])).exp())))


def slow_ash(row: Tensor) -> float:
    ordered = sorted(row.tolist(), reverse=True)
    kept = torch.where(row >= ordered[3], row, 0.0)
    return slow_energy(logits_of(kept.double() * float(torch.tensor(sum(ordered) / sum(ordered[:4])).exp())))


def slow_dice(row: Tensor) -> float:
    contribution = TRAIN.double().mean(0) * WEIGHT.double()
    limit = contribution.flatten().quantile(0.6)
    weight = torch.where(contribution > limit, WEIGHT.double(), 0.0)
    return slow_energy(linear(row.double(), weight, BIAS.double()))


def slow_knn(row: Tensor) -> float:
    distances = [float((row / row.norm() - other / other.norm()).norm()) for other in TRAIN]
    return sorted(distances)[2]


def slow_mahalanobis(row: Tensor) -> float:
    means = torch.stack([TRAIN.double()[label == LABELS].mean(0) for label in range(CLASSES)])
    centred = TRAIN.double() - means[LABELS]
    precision = torch.linalg.inv(centred.T @ centred + 1e-6 * torch.eye(FEATURES))
    return min(float((row.double() - mean) @ precision @ (row.double() - mean)) / 2 for mean in means)


def slow_rmd(row: Tensor) -> float:
    centred = TRAIN.double() - TRAIN.double().mean(0)
    precision = torch.linalg.inv(centred.T @ centred + 1e-6 * torch.eye(FEATURES))
    distance = row.double() - TRAIN.double().mean(0)
    return 2 * slow_mahalanobis(row) - float(distance @ precision @ distance)


def slow_vim(row: Tensor) -> float:
    origin = -torch.linalg.pinv(WEIGHT.double()) @ BIAS.double()
    centred = TRAIN.double() - origin
    residual = torch.linalg.svd(centred, full_matrices=True).Vh[5:]
    alpha = logits_of(TRAIN).amax(1).mean() / torch.stack([(residual @ each).norm() for each in centred]).mean()
    return float(alpha * (residual @ (row.double() - origin)).norm()) + slow_energy(logits_of(row))


def slow_kl_matching(row: Tensor) -> float:
    known, chances = torch.softmax(logits_of(TRAIN), 1), torch.softmax(logits_of(row), 0)
    typical = [known[known.argmax(1) == label].mean(0) for label in range(CLASSES)]
    return min(float((chances * (chances / each).log()).sum()) for each in typical)


def slow_she(row: Tensor) -> float:
    right = logits_of(TRAIN).argmax(1) == LABELS
    mean = TRAIN[right & (int(logits_of(row).argmax()) == LABELS)].double().mean(0)
    return -float(row.double() @ mean)


def slow_fdbd(row: Tensor) -> float:
    logits, weight = logits_of(row), WEIGHT.double()
    best = int(logits.argmax())
    distances = [
        float(logits[best] - logits[other]) / float((weight[best] - weight[other]).norm())
        for other in range(CLASSES)
        if other != best
    ]
    return -sum(distances) / len(distances) / float((row.double() - TRAIN.double().mean(0)).norm())


def slow_nci(row: Tensor) -> float:
    centred = row.double() - TRAIN.double().mean(0)
    alignment = centred @ WEIGHT.double()[int(logits_of(row).argmax())] / centred.norm()
    return -float(alignment) - 0.25 * float(row.double().abs().sum())


def slow_nnguide(row: Tensor) -> float:
    similarity = [
        -slow_energy(logits_of(other)) * float(row.double() @ other.double()) / float(row.norm() * other.norm())
        for other in TRAIN
    ]
    return slow_energy(logits_of(row)) * sum(sorted(similarity)[-4:]) / 4


SLOW: dict[str, Callable[[Tensor], float]] = {
    "MSP": slow_msp,
    "MaxLogit": lambda row: -float(logits_of(row).max()),
    "Energy": lambda row: slow_energy(logits_of(row)),
    "Entropy": lambda row: float(torch.distributions.Categorical(logits=logits_of(row)).entropy()),
    "GEN": slow_gen,
    "ReAct": slow_react,
    "ASH-S": slow_ash,
    "SCALE": slow_scale,
    "DICE": slow_dice,
    "KNN": slow_knn,
    "Mahalanobis": slow_mahalanobis,
    "RMD": slow_rmd,
    "ViM": slow_vim,
    "KL-Matching": slow_kl_matching,
    "fDBD": slow_fdbd,
    "NCI": slow_nci,
    "NNGuide": slow_nnguide,
    "SHE": slow_she,
}


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_scores_are_those_of_the_slow_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = torch.tensor([SLOW[name](row) for row in QUERY], dtype=torch.float64)
    scores = fitted(name).output(QUERY).scores
    assert not scores.requires_grad
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(baselines, "_ROWS", 7)
    torch.testing.assert_close(fitted(name).output(QUERY).scores, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_no_bias_half_precision_integers_and_missing_labels_are_taken(name: str) -> None:
    one, other = fitted(name, bias=None), fitted(name, bias=torch.zeros(CLASSES))
    assert torch.equal(one.output(QUERY).scores, other.output(QUERY).scores)
    method = PytorchOodBaseline(name, weight=WEIGHT, bias=BIAS, settings=SETTINGS.get(name))
    method.fit(TRAIN.half(), LABELS.to(torch.int16) if method.needs_labels else None)
    assert len(method.output(QUERY.half()).scores) == len(QUERY)
    if method.needs_labels:
        with pytest.raises(EmptyDataError, match="needs the labels of the training samples"):
            method.fit(TRAIN)


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_logits_are_those_that_the_score_was_read_off(name: str) -> None:
    output = fitted(name).output(QUERY)
    if name in ("ReAct", "ASH-S", "SCALE", "DICE"):
        assert output.logits is not None
        torch.testing.assert_close(output.scores, -output.logits.logsumexp(1), rtol=1e-6, atol=1e-6)
    elif output.logits is not None:
        torch.testing.assert_close(output.logits, logits_of(QUERY))
    else:
        assert name in ("KNN", "ViM", "Mahalanobis", "RMD", "fDBD", "NCI", "NNGuide", "SHE")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 0.85, 0.9, 0.95, 0.99, 1.0])
def test_the_threshold_of_react_is_the_percentile_to_the_bit_from_one_copy(share: float, dtype: torch.dtype) -> None:
    features = torch.rand(3001, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    before = features.clone()
    method = PytorchOodBaseline("ReAct", weight=torch.ones(2, 64), bias=None, settings={"percentile": share})
    tracemalloc.start()
    method.fit(features)
    copied = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert method._detector.threshold == np.percentile(features.double().numpy(), 100 * share)
    assert torch.equal(features, before)
    assert copied < features.nbytes  # of NumPy's: what torch takes is not traced


def test_confident_samples_do_not_tie() -> None:
    logits = torch.tensor([[0.0, 20.0], [0.0, 21.0]])
    assert len(torch.softmax(logits, 1).amax(1).unique()) == 1
    method = PytorchOodBaseline("MSP", weight=torch.eye(2), bias=None).fit(logits)
    assert len(method.output(logits).scores.unique()) == 2


def test_what_cannot_be_fitted_says_why() -> None:
    wide = PytorchOodBaseline("Mahalanobis", weight=torch.randn(2, 50), bias=None)
    with pytest.raises(EmptyDataError, match="50 features within classes, which 40 samples of 2 classes leave"):
        wide.fit(torch.rand(40, 50), torch.arange(40) % 2)
    with pytest.raises(EmptyDataError, match=f"samples of all {CLASSES} classes, but 2 occur"):
        fitted("SHE").fit(TRAIN, LABELS % 2)
    with pytest.raises(NotFittedError, match="MSP has seen no data"):
        PytorchOodBaseline("MSP", weight=WEIGHT, bias=BIAS).output(QUERY)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("ODIN", {}, OptionError, "must be one of MSP, MaxLogit"),
        ("DICE", {"settings": {"q": 0.9}}, OptionError, "DICE must be its own: it takes p, got q"),
        ("MSP", {"settings": {"k": 1}}, OptionError, "it takes none, got k"),
        ("MSP", {"weight": WEIGHT[0]}, ShapeError, r"`weight` must have shape \(classes, features\)"),
    ],
)
def test_arguments_are_checked(name: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PytorchOodBaseline(name, **{"weight": WEIGHT, "bias": BIAS, **options})


@pytest.mark.parametrize("missing", ["pytorch_ood", "sklearn"])
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opnp.errors.find_spec", lambda name: None if name == missing else name)
    with pytest.raises(MissingExtraError, match=r"pip install 'opnp\[bench\]'"):
        PytorchOodBaseline("MSP", weight=WEIGHT, bias=BIAS)
    if missing == "pytorch_ood":
        with pytest.raises(MissingExtraError, match=r"ODIN needs pytorch-ood.*pip install 'opnp\[bench\]'"):
            odin_scores(network(), [images(2)], std=None)


MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.25, 0.2, 0.1])


def network(*, seed: int = 0, is_in_place: bool = False) -> nn.Sequential:
    """Return a small CNN in training mode, with batch norm and dropout, for images of 6 x 6."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first: list[nn.Module] = [nn.ReLU(inplace=True)] if is_in_place else []
        convolution = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Dropout(0.5)]
        return nn.Sequential(*first, *convolution, nn.Flatten(), nn.Linear(128, 4)).train()


def images(rows: int, *, seed: int = 1) -> Tensor:
    """Return images of pixels in [0, 1]."""
    return torch.rand(rows, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def normalised(pixels: Tensor) -> Tensor:
    return (pixels - MEAN.to(pixels)[:, None, None]) / STD.to(pixels)[:, None, None]


def slow_odin(model: nn.Module, pixels: Tensor, *, temperature: float, eps: float) -> Tensor:
    """Return the scores of the paper: image by image in float64, with the step taken on the pixels themselves."""
    model = copy.deepcopy(model).eval().double()
    scores = []
    for image in pixels.double():
        variable = image[None].clone().requires_grad_()
        chances = torch.softmax(model(normalised(variable)) / temperature, 1)
        (-chances.max().log()).backward()
        assert variable.grad is not None
        moved = image[None] - eps * variable.grad.sign()
        with torch.no_grad():
            scores.append(-torch.softmax(model(normalised(moved)) / temperature, 1).max())
    return torch.stack(scores)


@pytest.mark.parametrize(("temperature", "eps"), [(1000.0, 0.0014), (1.0, 0.0014), (1000.0, 0.1), (1000.0, 0.0)])
def test_odin_is_that_of_the_paper_with_the_step_on_the_pixels(temperature: float, eps: float) -> None:
    model, pixels = network(), images(20)
    inputs = normalised(pixels).split(8)
    scores = odin_scores(model, inputs, std=STD.tolist(), temperature=temperature, eps=eps)
    expected = slow_odin(model, pixels, temperature=temperature, eps=eps)
    # Against 1/4: what is left carries the differences between the inputs.
    torch.testing.assert_close(scores + 0.25, expected + 0.25, rtol=1e-4, atol=0)
    assert scores.dtype == torch.float64
    assert len(scores.unique()) == 20
    if eps > 0:
        wrong = odin_scores(model, inputs, std=None, temperature=temperature, eps=eps)
        assert float((wrong - scores).abs().max()) > 1e-6


def test_odin_gives_a_model_that_writes_to_its_inputs_back_as_it_was() -> None:
    model, inputs = network(is_in_place=True), normalised(images(4))
    before = inputs.clone()
    with unchanged(model, "ODIN"):
        odin_scores(model, [inputs, inputs], std=STD.tolist())
    assert torch.equal(inputs, before)
    assert not inputs.requires_grad


def test_odin_takes_batches_wrappers_and_outputs_of_all_kinds() -> None:
    model, inputs = network(), normalised(images(5))

    class Answering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, pixel_values: Tensor) -> WithLogits:
            return WithLogits(self.inner(pixel_values))

    expected = odin_scores(model, [inputs], std=None)
    labelled = list(zip(inputs.split(2), torch.arange(5).split(2), strict=True))
    for given in (model, nn.DataParallel(model), compiled(model), Answering()):
        torch.testing.assert_close(odin_scores(given, labelled, std=None), expected, rtol=1e-9, atol=0)


def test_what_odin_cannot_score_says_why() -> None:
    class Pair(nn.Module):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return inputs, inputs

    with pytest.raises(EmptyDataError, match="no batch"):
        odin_scores(network(), [], std=None)
    for batch in (torch.zeros(2, 3, 6, 6, dtype=torch.uint8), {"pixel_values": images(2)}):
        with pytest.raises(InputTypeError, match="must be floating-point tensors"):
            odin_scores(network(), [batch], std=None)
    with pytest.raises(InputTypeError, match="whose output is a tensor of logits"):
        odin_scores(Pair(), [images(2)], std=None)

"""The detectors of pytorch-ood, fed by this project, answer what their papers say: slow and obvious versions."""

from collections.abc import Callable

import pytest
import torch
from pytorch_ood.detector import fDBD
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp import auroc
from opnp.adapters import BASELINE_NAMES, PytorchOodBaseline
from opnp.errors import EmptyDataError, MissingExtraError, NotFittedError, OptionError, ShapeError
from tests.unit.bench.bench_world import CLASSES, FEATURES, world_features, world_weight

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
def test_scores_are_those_of_the_slow_version(name: str) -> None:
    expected = torch.tensor([SLOW[name](row) for row in QUERY], dtype=torch.float64)
    torch.testing.assert_close(fitted(name).output(QUERY).scores, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_every_method_tells_noise_from_known_samples(name: str) -> None:
    method = fitted(name)
    inside, outside = (
        method.output(world_features(200, seed=7)[0]),
        method.output(world_features(60, seed=8, strength=0)[0]),
    )
    assert inside.scores.shape == (200,)
    assert inside.scores.dtype == torch.float64
    assert not inside.scores.requires_grad
    assert bool(torch.isfinite(inside.scores).all())
    assert auroc(inside.scores, outside.scores) > 0.5


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_rows_do_not_depend_on_their_company(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted(name).output(QUERY).scores
    monkeypatch.setattr("opnp.adapters.baselines._ROWS", 7)
    torch.testing.assert_close(fitted(name).output(QUERY).scores, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_a_head_without_bias_is_one_with_zeros(name: str) -> None:
    one, other = fitted(name, bias=None), fitted(name, bias=torch.zeros(CLASSES))
    assert torch.equal(one.output(QUERY).scores, other.output(QUERY).scores)


@pytest.mark.parametrize("name", BASELINE_NAMES)
def test_half_precision_integers_and_missing_labels_are_taken(name: str) -> None:
    method = PytorchOodBaseline(name, weight=WEIGHT, bias=BIAS, settings=SETTINGS.get(name))
    if method.needs_labels:
        method.fit(TRAIN.half(), LABELS.to(torch.int16))
        with pytest.raises(EmptyDataError, match="needs the labels of the training samples"):
            method.fit(TRAIN)
    else:
        method.fit(TRAIN.half())
    assert len(method.output(QUERY.half()).scores) == len(QUERY)


@pytest.mark.parametrize("name", ["ReAct", "ASH-S", "SCALE", "DICE", "MSP", "KL-Matching"])
def test_logits_are_those_that_the_score_was_read_off(name: str) -> None:
    output = fitted(name).output(QUERY)
    assert output.logits is not None
    assert output.logits.shape == (len(QUERY), CLASSES)
    if name in ("ReAct", "ASH-S", "SCALE", "DICE"):
        torch.testing.assert_close(output.scores, -output.logits.logsumexp(1), rtol=1e-6, atol=1e-6)
    else:
        torch.testing.assert_close(output.logits, logits_of(QUERY))


def test_methods_on_features_alone_have_no_logits() -> None:
    assert fitted("KNN").output(QUERY).logits is None


def test_confident_samples_do_not_tie() -> None:
    logits = torch.tensor([[0.0, 20.0], [0.0, 21.0]])
    assert len(torch.softmax(logits, 1).amax(1).unique()) == 1
    method = PytorchOodBaseline("MSP", weight=torch.eye(2), bias=None).fit(logits)
    assert len(method.output(logits).scores.unique()) == 2


def test_fdbd_without_the_dense_product_is_fdbd() -> None:
    head = nn.Linear(FEATURES, CLASSES)
    head.weight.data, head.bias.data = WEIGHT.clone(), BIAS.clone()
    theirs = fDBD(None, head).fit_features(TRAIN, LABELS).predict_features(QUERY)
    torch.testing.assert_close(fitted("fDBD").output(QUERY).scores, theirs.double(), rtol=1e-5, atol=1e-6)


def test_a_changed_setting_changes_the_scores() -> None:
    for name, (setting, values) in {
        "DICE": ("p", (0.1, 0.9)),
        "ReAct": ("percentile", (0.5, 0.9)),
        "SCALE": ("percentile", (0.5, 0.9)),
        "KNN": ("k", (1, 50)),
        "ViM": ("d", (2, 10)),
    }.items():
        one, other = (
            PytorchOodBaseline(name, weight=WEIGHT, bias=BIAS, settings={setting: value}).fit(TRAIN, LABELS)
            for value in values
        )
        assert not torch.equal(one.output(QUERY).scores, other.output(QUERY).scores), name


def test_what_cannot_be_fitted_says_why() -> None:
    wide = PytorchOodBaseline("Mahalanobis", weight=torch.randn(2, 50), bias=None)
    with pytest.raises(
        EmptyDataError, match="50 features within classes, which 40 samples of 2 classes leave singular"
    ):
        wide.fit(torch.rand(40, 50), torch.arange(40) % 2)
    with pytest.raises(EmptyDataError, match=f"samples of all {CLASSES} classes, but 2 occur"):
        fitted("SHE").fit(TRAIN, LABELS % 2)


def test_arguments_are_checked() -> None:
    with pytest.raises(OptionError, match="must be one of MSP, MaxLogit"):
        PytorchOodBaseline("ODIN", weight=WEIGHT, bias=BIAS)
    with pytest.raises(OptionError, match="DICE must be its own: it takes p, got q"):
        PytorchOodBaseline("DICE", weight=WEIGHT, bias=BIAS, settings={"q": 0.9})
    with pytest.raises(OptionError, match="it takes none, got k"):
        PytorchOodBaseline("MSP", weight=WEIGHT, bias=BIAS, settings={"k": 1})
    with pytest.raises(ShapeError, match=r"`weight` must have shape \(classes, features\)"):
        PytorchOodBaseline("MSP", weight=WEIGHT[0], bias=None)
    with pytest.raises(NotFittedError, match="MSP has seen no data"):
        PytorchOodBaseline("MSP", weight=WEIGHT, bias=BIAS).output(QUERY)


@pytest.mark.parametrize("missing", ["pytorch_ood", "sklearn"])
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opnp.adapters.baselines.find_spec", lambda name: None if name == missing else name)
    with pytest.raises(MissingExtraError, match=r"pip install 'opnp\[bench\]'"):
        PytorchOodBaseline("MSP", weight=WEIGHT, bias=BIAS)

import copy
import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, CompactHead, Ratios
from opnp.core import ASHS, MEMBERS, PANEL, SCALE, SCORE_NAMES, Masks, Precision, ReAct, ScoreName, Shaping
from opnp.errors import (
    HeadMismatchError,
    HeadNotFoundError,
    InputTypeError,
    NotCalibratedError,
    NotFittedError,
    ShapeError,
)
from opnp.export.module import _common
from tests.unit.detector.detector_world import CLASSES, FEATURES, KINDS, bias, features, head_of, loader, model, weight

PRUNED = [
    Ratios(),
    Ratios(w_min=0.3),
    Ratios(o_min=0.3, o_max=0.2),
    Ratios(w_min=0.3, w_max=0.1, o_min=0.3, o_max=0.3),
    Ratios(o_min=0.9),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPINGS = (None, ReAct(0.9), ASHS(0.6), SCALE(0.6))


def calibrated(net: nn.Module, **options: Any) -> OPNP:
    detector = OPNP(ratios=Ratios(w_min=0.3, o_max=0.1), **{"shaping": None, **options})
    return detector.fit(net, loader()).calibrate(loader(5, seed=1), keep=0.5)


def calibrated_fusion(net: nn.Module, **options: Any) -> OPNP:
    return OPNP(**options).fit(net, loader(20)).calibrate(loader(5, seed=1), keep=0.5)


def calibrated_as(kind: str, net: nn.Module) -> OPNP:
    return calibrated_fusion(net) if kind == "fusion" else calibrated(net)


def inputs() -> Tensor:
    """Return inputs among which are calibration samples, so that scores tie with calibration scores."""
    return torch.cat([loader(5, seed=1)[2], 3 * features(30, seed=2), features(10, seed=3) / 100])


@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
@pytest.mark.parametrize("score", SCORE_NAMES)
@pytest.mark.parametrize(("temperature", "precision"), [(1.0, "float32"), (2.5, "float64")])
def test_a_module_gives_the_numbers_of_the_detector(
    shaping: Shaping | None, score: ScoreName, temperature: float, precision: Precision
) -> None:
    net = model()
    detector = calibrated(net, shaping=shaping, score=score, temperature=temperature, precision=precision)
    logits, scores, p_values = detector.to_module()(inputs())
    assert torch.equal(logits, net(inputs()))
    assert torch.equal(scores, detector.score(inputs()))
    assert scores.dtype == getattr(torch, precision)
    assert torch.equal(p_values, detector.p_value(inputs()))
    assert len(p_values.unique()) > 5
    judged = detector.to_module().judge(inputs())
    assert torch.equal(judged[2], detector.predict(inputs()))
    assert 0 < int(judged[2].sum()) < len(inputs())


@pytest.mark.parametrize("members", [PANEL, MEMBERS, ("gen",), ("norm", "fdbd")], ids=len)
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("is_half", [False, True])
def test_a_module_of_a_fusion_gives_the_numbers_of_the_detector(
    members: tuple[str, ...], precision: Precision, is_half: bool
) -> None:
    net, given = model(), inputs()
    given[3], given[4] = 0.0, 1e30
    if is_half:
        net, given = net.half(), given.half().nan_to_num(posinf=6e4)
    detector = OPNP(members=members, precision=precision)
    batches = [batch.half() if is_half else batch for batch in loader(20)]
    detector.fit(net, batches).calibrate(batches[:5], keep=0.5)
    logits, scores, p_values = detector.to_module()(given)
    assert torch.equal(logits, net(given))
    assert torch.equal(scores, detector.score(given))
    assert scores.dtype == torch.float64
    assert torch.equal(p_values, detector.p_value(given))
    assert bool(scores[3].isposinf()) is ("norm" in members)
    judged = detector.to_module().judge(given.relu())
    assert torch.equal(judged[2], detector.predict(given))
    assert 0 < int(judged[2].sum()) < len(given)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_p_values_and_verdicts_at_and_beside_calibration_scores_are_exact(kind: str, precision: Precision) -> None:
    is_fusion = kind == "fusion"
    detector = (calibrated_fusion if is_fusion else calibrated)(model(), precision=precision)
    detector.calibrate_features(features(50, seed=1).repeat(2, 1), keep=0.9)  # every calibration score twice
    judge, calibration = detector.to_module().judge, detector._calibration()
    scores = calibration.scores if is_fusion else calibration.scores.to(getattr(torch, precision))
    tried = torch.cat([torch.nextafter(scores, torch.full_like(scores, side)) for side in (-1e9, 1e9)] + [scores])
    assert torch.equal(judge.p_value(tried), calibration.p_value(tried))
    assert torch.equal(judge.is_ood(tried), calibration.is_ood(tried))


@pytest.mark.filterwarnings(
    "ignore:Online softmax is disabled:UserWarning"
)  # of torch.compile, where it is used at all
def test_wrappers_are_looked_through() -> None:
    net = model()
    expected = calibrated(net).to_module()(inputs())
    whole, part = torch.compile(net), torch.compile(net[0])
    assert isinstance(whole, nn.Module)
    assert isinstance(part, nn.Module)
    for wrapped in (nn.DataParallel(net), whole, nn.Sequential(part, net[1])):
        module = calibrated(wrapped).to_module()
        assert all(map(torch.equal, module(inputs()), expected))
        assert not any(type(part).__name__ == "OptimizedModule" for part in module.modules())


def test_another_model_with_the_same_head_is_taken_and_one_with_another_head_refused() -> None:
    detector = calibrated(model())
    alone = OPNP(ratios=Ratios(w_min=0.3, o_max=0.1), shaping=None)
    alone.fit_features(
        torch.cat(loader()), weight=head_of(model()).weight.detach(), bias=head_of(model()).bias.detach()
    )
    alone.calibrate_features(torch.cat(loader(5, seed=1)), keep=0.5)
    with pytest.raises(NotFittedError, match="no model"):
        alone.to_module()
    assert all(map(torch.equal, alone.to_module(model())(inputs()), detector.to_module()(inputs())))
    other = model()
    head_of(other).weight.data += 1
    with pytest.raises(HeadMismatchError, match="another dtype"):
        detector.to_module(other)


def test_what_gives_no_module_is_told() -> None:
    """No calibration, a model that cannot be copied, and a head that changed since the fit."""
    with pytest.raises(NotCalibratedError, match="calibrate"):
        OPNP(ratios=Ratios(w_min=0.3)).fit(model(), loader()).to_module()
    net = model()
    detector = calibrated(net)
    net.lock = threading.Lock()  # type: ignore[assignment]  # what a module may not hold is the point
    with pytest.raises(InputTypeError, match=r"copy\.deepcopy raised TypeError"):
        detector.to_module()
    head_of(net).bias.data += 1
    with pytest.raises(HeadMismatchError, match="changed since"):
        detector.to_module()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "options",
    [
        *({"score": score, "shaping": SCALE(0.6)} for score in SCORE_NAMES),
        *({"shaping": shaping} for shaping in SHAPINGS),
        *({"members": members} for members in (PANEL, MEMBERS, ("gen",))),
    ],
    ids=range(12),
)
def test_what_is_not_finite_is_flagged(value: float, options: dict[str, Any]) -> None:
    judge = (calibrated_fusion if "members" in options else calibrated)(model(), **options).to_module().judge
    rows = features(4, seed=5)
    rows[1, 3] = value
    scores, p_values, is_ood = judge(rows)
    assert scores.isnan().tolist() == [False, True, False, False]
    assert float(p_values[1]) == 1 / 101
    assert bool(is_ood[1])


@pytest.mark.parametrize("kind", KINDS)
def test_casting_the_module_casts_the_model_and_not_the_calibration(kind: str) -> None:
    net = model()
    detector = calibrated_as(kind, net)
    module = detector.to_module().half()
    assert head_of(module.model).weight.dtype == torch.float16  # type: ignore[arg-type]  # a copy of `net`
    for name, buffer in detector.to_module().judge.named_buffers():
        assert torch.equal(module.judge.get_buffer(name), buffer)
    logits, scores, p_values = module(inputs().half())
    assert (logits.dtype, scores.dtype) == (torch.float16, torch.float64 if kind == "fusion" else torch.float32)
    rounded = inputs().half()
    assert torch.equal(scores, detector.score_features(rounded.relu()))
    assert torch.equal(p_values, detector.p_value_features(rounded.relu()))
    assert module.to("meta").judge.calibration.device.type == "meta"


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_is_a_copy_and_its_states_carry_all_of_it(kind: str) -> None:
    net = model()
    module, other = (calibrated_as(kind, net).to_module() for _ in range(2))
    before, twin = module(inputs()), copy.deepcopy(module)
    head_of(net).weight.data.zero_()
    for buffer in other.judge.buffers():
        buffer.zero_()
    other.load_state_dict(module.state_dict())
    module.judge.threshold.zero_()
    for each in (module, other, twin):
        assert all(map(torch.equal, each(inputs()), before))
    assert not torch.equal(twin.judge.threshold, module.judge.threshold)
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_module_stays_in_eval_mode() -> None:
    net = nn.Sequential(nn.Dropout(0.5), *model())
    module = calibrated(net).to_module()
    assert module.train() is module
    assert not any(part.training for part in module.modules())
    assert all(map(torch.equal, module(inputs()), module(inputs())))


class Named(nn.Module):
    """A model that takes two tensors by keyword and answers with a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = head_of(model())

    def forward(self, *, values: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
        return {"logits": self.classifier(values * mask)}


def test_inputs_by_keyword() -> None:
    batches = [{"values": each, "mask": torch.ones_like(each)} for each in loader()]
    detector = OPNP(ratios=Ratios(w_min=0.3), shaping=None).fit(Named(), batches).calibrate(batches)
    batch = {"values": inputs(), "mask": (inputs() > 0.5).float()}
    logits, scores, p_values = detector.to_module()(**batch)
    assert torch.equal(logits, head_of(model())(inputs() * batch["mask"]))
    assert torch.equal(scores, detector.score(batch))
    assert torch.equal(p_values, detector.p_value(batch))


@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_as_head(size: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(40, 6, size, size)
    detector = OPNP(ratios=Ratios(w_min=0.3), shaping=None).fit(net, [images]).calibrate([images])
    logits, scores, p_values = detector.to_module()(images)
    torch.testing.assert_close(logits, net(images))
    assert torch.equal(scores, detector.score(images))
    assert torch.equal(p_values, detector.p_value(images))


class Moody(nn.Module):
    """A model that fails, or runs its head as often as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.times = head_of(model()), 1

    def forward(self, values: Tensor) -> Tensor:
        made = [self.head(values) for _ in range(self.times)]
        if values.shape[1] and bool(values[0, 0] == -1):
            raise ZeroDivisionError
        return made[-1] if made else values


def test_a_failed_call_leaves_nothing_behind() -> None:
    module = calibrated(Moody()).to_module()
    expected = module(inputs())
    with pytest.raises(ZeroDivisionError):
        module(torch.full_like(inputs(), -1))
    assert all(map(torch.equal, module(inputs()), expected))
    for times in (0, 2):
        module.model.times = times  # type: ignore[assignment]  # an attribute of `Moody`
        with pytest.raises(HeadNotFoundError, match=f"ran {times} times"):
            module(inputs())
    module.model.times = 1  # type: ignore[assignment]  # as above
    module.model(inputs())
    assert all(map(torch.equal, module(inputs()), expected))


@pytest.mark.parametrize("one", DTYPES)
def test_the_common_dtype_is_that_of_torch(one: torch.dtype) -> None:
    assert [_common(one, other) for other in DTYPES] == [torch.promote_types(one, other) for other in DTYPES]


def test_threads_do_not_see_each_others_features() -> None:
    barrier = threading.Barrier(2, timeout=20)

    class Meeting(nn.Module):
        """A model whose calls in two threads overlap around the head."""

        def __init__(self) -> None:
            super().__init__()
            self.head = head_of(model())

        def forward(self, values: Tensor) -> Tensor:
            if not self.is_alone:
                barrier.wait()
            made: Tensor = self.head(values)
            if not self.is_alone:
                barrier.wait()
            return made

        is_alone = True

    module = calibrated(Meeting()).to_module()
    parts = inputs()[:20], inputs()[20:]
    expected = [module(part) for part in parts]
    Meeting.is_alone = False
    found: dict[int, tuple[Tensor, ...]] = {}
    threads = [
        threading.Thread(target=lambda place=place: found.update({place: module(parts[place])})) for place in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in (0, 1):
        assert all(map(torch.equal, found[place], expected[place]))


# ---------------------------------------------------------------------------------------------------- the compact head
@pytest.mark.parametrize("ratios", PRUNED)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_compact_head_has_the_kept_columns_and_the_logits_of_the_pruned_one(ratios: Ratios, has_bias: bool) -> None:
    detector, given = OPNP(ratios=ratios), features(30, seed=1).double()
    detector.fit_features(features(), weight=weight().double(), bias=bias().double() if has_bias else None)
    compact, head = detector.compact_head(), detector.pruned_head
    kept = [index for index in range(FEATURES) if bool(head.weight[:, index].any())]
    assert (compact.index.tolist(), compact.index.dtype) == (kept, torch.int64)
    assert type(compact.head) is nn.Linear
    assert (compact.head.in_features, compact.head.out_features) == (len(kept), CLASSES)
    assert torch.equal(compact.head.weight, head.weight[:, kept])
    assert not any(parameter.requires_grad for parameter in compact.parameters())
    for rows in (given, given[0], given.view(5, 6, -1)):
        torch.testing.assert_close(compact(rows), head(rows), rtol=1e-12, atol=1e-12)


def test_of_a_head_of_which_nothing_is_left_the_bias_stays() -> None:
    masks = Masks(torch.zeros(2, 3, dtype=torch.bool), torch.ones(3, dtype=torch.bool))
    compact = CompactHead.from_head(nn.Linear(3, 2), masks)
    assert compact.index.tolist() == []
    assert torch.equal(compact(torch.ones(4, 3)), compact.head.bias.expand(4, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_compact_head_is_a_module_like_any_other(dtype: torch.dtype) -> None:
    detector, given = OPNP(ratios=Ratios(o_min=0.5)), features(5, seed=1).to(dtype)
    detector.fit_features(features(), weight=weight().to(dtype), bias=bias().to(dtype))
    compact, again = detector.compact_head(), detector.compact_head()
    before = compact(given)
    assert before.dtype == dtype
    compact.head.weight.fill_(7.0)
    assert torch.equal(again(given), before)  # no memory is shared
    compact.load_state_dict(again.state_dict())
    assert torch.equal(compact(given), before)
    assert list(compact.state_dict()) == ["index", "head.weight", "head.bias"]
    assert compact.double().index.dtype == torch.int64
    assert repr(compact).startswith(f"CompactHead(\n  reads 6 of {FEATURES} features\n  (head): Linear(in_features=6")
    exported = torch.export.export(nn.Sequential(nn.ReLU(), again), (given,)).module()
    assert torch.equal(exported(given), again(given.relu()))
    for wrong in (torch.ones(2, 6), torch.ones(2, FEATURES + 1), torch.ones(())):
        with pytest.raises(ShapeError, match=rf"must have shape \(\.\.\., {FEATURES}\), got .* go to `\.head`"):
            again(wrong)

import copy
import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opnp import OPNP, Ratios
from opnp.core import ASHS, MEMBERS, PANEL, SCALE, SCORE_NAMES, Precision, ReAct, ScoreName, Shaping
from opnp.errors import HeadMismatchError, HeadNotFoundError, InputTypeError, NotCalibratedError, NotFittedError
from opnp.export.module import DetectorModule, _common
from tests.contract.snapshot import unchanged
from tests.unit.detector.detector_world import KINDS, features, head_of, loader, model

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


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_and_its_detector_stay_as_they_were(kind: str) -> None:
    net = model().train()
    net[0].register_forward_hook(lambda *_: None)
    detector = calibrated_as(kind, net)
    before = detector.score(inputs())
    with unchanged(net, "to_module"):
        module = detector.to_module()
        module(inputs())
        module.half().to("meta")
    assert torch.equal(detector.score(inputs()), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_is_a_copy(kind: str) -> None:
    net = model()
    module = calibrated_as(kind, net).to_module()
    before = module(inputs())
    head_of(net).weight.data.zero_()
    assert all(map(torch.equal, module(inputs()), before))
    assert not any(parameter.requires_grad for parameter in module.parameters())


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


def test_a_head_that_changed_since_the_fit_is_refused() -> None:
    net = model()
    detector = calibrated(net)
    head_of(net).bias.data += 1
    with pytest.raises(HeadMismatchError, match="changed since"):
        detector.to_module()


def test_an_uncalibrated_detector_gives_no_module() -> None:
    with pytest.raises(NotCalibratedError, match="calibrate"):
        OPNP(ratios=Ratios(w_min=0.3)).fit(model(), loader()).to_module()


def test_a_model_that_cannot_be_copied_is_told() -> None:
    net = model()
    net.lock = threading.Lock()  # type: ignore[assignment]  # what a module may not hold is the point
    with pytest.raises(InputTypeError, match=r"copy\.deepcopy raised TypeError"):
        calibrated(net).to_module()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("score", SCORE_NAMES)
@pytest.mark.parametrize("shaping", SHAPINGS, ids=str)
def test_what_is_not_finite_is_flagged(value: float, score: ScoreName, shaping: Shaping | None) -> None:
    judge = calibrated(model(), score=score, shaping=shaping).to_module().judge
    rows = features(4, seed=5)
    rows[1, 3] = value
    scores, p_values, is_ood = judge(rows)
    assert scores.isnan().tolist() == [False, True, False, False]
    assert float(p_values[1]) == 1 / 101
    assert bool(is_ood[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("members", [PANEL, MEMBERS, ("gen",)], ids=len)
def test_what_is_not_finite_is_flagged_by_a_fusion(value: float, members: tuple[str, ...]) -> None:
    judge = calibrated_fusion(model(), members=members).to_module().judge
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
def test_copies_and_states_carry_all_of_it(kind: str) -> None:
    module, other = (calibrated_as(kind, model()).to_module() for _ in range(2))
    for buffer in other.judge.buffers():
        buffer.zero_()
    other.load_state_dict(module.state_dict())
    twin = copy.deepcopy(module)
    module.judge.threshold.zero_()
    for each in (other, twin):
        assert all(map(torch.equal, each(inputs()), module(inputs())))
    assert not torch.equal(twin.judge.threshold, module.judge.threshold)


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


@pytest.mark.parametrize("one", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("other", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_common_dtype_is_that_of_torch(one: torch.dtype, other: torch.dtype) -> None:
    assert _common(one, other) == torch.promote_types(one, other)


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


def test_a_module_of_fifty_thousand_calibration_scores() -> None:
    detector = calibrated(model())
    detector.calibrate_features(features(50_000, seed=9))
    module: DetectorModule = detector.to_module()
    assert module.judge.calibration.dtype == torch.float32
    assert torch.equal(module(inputs())[2], detector.p_value(inputs()))

"""ODIN of pytorch-ood on a model: what its paper says, in units of the pixels, with the model left as it was."""

import copy
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from opnp.adapters import baselines, odin_scores
from opnp.errors import EmptyDataError, InputTypeError, MissingExtraError
from tests.contract.snapshot import unchanged
from tests.unit.model.tiny_models import WithLogits, compiled

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


def slow_odin(model: nn.Module, pixels: Tensor, *, temperature: float = 1000.0, eps: float = 0.0014) -> Tensor:
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


def test_scores_are_those_of_the_paper_with_the_step_on_the_pixels() -> None:
    model, pixels = network(), images(10)
    inputs = normalised(pixels).split(4)
    scores = odin_scores(model, inputs, std=STD.tolist())
    # Against 1/4: what is left carries the differences between the inputs.
    torch.testing.assert_close(scores + 0.25, slow_odin(model, pixels) + 0.25, rtol=1e-4, atol=0)
    assert scores.dtype == torch.float64
    wrong = odin_scores(model, inputs, std=None)
    assert float((wrong - scores).abs().max()) > 1e-6


def test_temperature_and_step_are_used() -> None:
    model, pixels = network(), images(6)
    for temperature, eps in ((1.0, 0.0014), (1000.0, 0.1)):
        scores = odin_scores(model, [normalised(pixels)], std=STD.tolist(), temperature=temperature, eps=eps)
        expected = slow_odin(model, pixels, temperature=temperature, eps=eps)
        torch.testing.assert_close(scores + 0.25, expected + 0.25, rtol=1e-4, atol=0)


def test_without_a_step_it_is_the_softmax_of_the_logits_and_nothing_ties() -> None:
    model, inputs = network(), normalised(images(64))
    scores = odin_scores(model, [inputs], std=None, eps=0.0)
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(inputs)
    expected = -torch.softmax(logits.double() / 1000, 1).amax(1)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=0)
    assert len(scores.unique()) == 64


@pytest.mark.parametrize("is_in_place", [False, True])
def test_the_model_comes_back_as_it_was(is_in_place: bool) -> None:
    model = network(is_in_place=is_in_place)
    first, *_, last = model.parameters()
    last.requires_grad = False
    first.grad = torch.ones_like(first)
    inputs = normalised(images(4))
    before = inputs.clone()
    with unchanged(model, "ODIN"):
        odin_scores(model, [inputs, inputs], std=STD.tolist())
    assert torch.equal(inputs, before)
    assert not inputs.requires_grad


def test_the_model_comes_back_as_it_was_after_an_error() -> None:
    model = network()

    def batches() -> Iterator[Tensor]:
        yield normalised(images(2))
        message = "no more"
        raise OSError(message)

    with unchanged(model, "an error in the loader"), pytest.raises(OSError, match="no more"):
        odin_scores(model, batches(), std=None)
    with unchanged(model, "inputs of another shape"), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        odin_scores(model, [torch.zeros(2, 3, 9, 9)], std=None)


def test_batches_wrappers_and_outputs_of_all_kinds() -> None:
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


def test_what_cannot_be_scored_says_why() -> None:
    with pytest.raises(EmptyDataError, match="no batch"):
        odin_scores(network(), [], std=None)
    with pytest.raises(InputTypeError, match="must be floating-point tensors"):
        odin_scores(network(), [torch.zeros(2, 3, 6, 6, dtype=torch.uint8)], std=None)
    with pytest.raises(InputTypeError, match="must be floating-point tensors"):
        odin_scores(network(), [{"pixel_values": images(2)}], std=None)

    class Pair(nn.Module):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return inputs, inputs

    with pytest.raises(InputTypeError, match="whose output is a tensor of logits"):
        odin_scores(Pair(), [images(2)], std=None)


def test_without_pytorch_ood_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "find_spec", lambda name: None if name == "pytorch_ood" else find_spec(name))
    with pytest.raises(MissingExtraError, match=r"ODIN needs pytorch-ood.*pip install 'opnp\[bench\]'"):
        odin_scores(network(), [images(2)], std=None)

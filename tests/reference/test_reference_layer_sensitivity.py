"""Sensitivities of any layer against autograd, one sample at a time, in float64."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from opnp import sensitivity
from opnp.core import weight_sensitivity
from opnp.errors import LayerWarning
from tests.reference.per_sample_gradients import loop_sensitivity
from tests.unit.model.layer_models import TinyViT, Twice, cnn, images, seeded

KINDS = (nn.Linear, nn.Conv2d)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(300, 12),
        nn.ReLU(inplace=True),
        nn.Linear(12, 8, bias=False),
        nn.Tanh(),
        nn.Linear(8, 5),
    )


class Vectors(nn.Module):
    """Feeds the first numbers of each image to a model of vectors."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.width = inner, width

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs.flatten(1)[:, : self.width])
        return outputs


def cnn_that_has_run() -> nn.Module:
    model = cnn()
    model(torch.zeros(2, 3, 10, 10))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn_that_has_run,
    "vit": TinyViT,
    "shared": lambda: Vectors(Twice(), 6),
}


@pytest.mark.parametrize("temperature", [1.0, 0.4])
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_has_its_mean_absolute_gradients(name: str, temperature: float) -> None:
    model, batches = seeded(MODELS[name]), images().split(3)
    layers = [name for name, layer in model.named_modules() if isinstance(layer, KINDS)]
    found = sensitivity(model, batches, layers=layers, temperature=temperature)
    of_weights, of_inputs = loop_sensitivity(model, batches, layers, temperature=temperature)
    assert list(found) == layers
    for layer in layers:
        assert found[layer].count == 7
        assert_close(found[layer].weight, of_weights[layer])
        if name != "shared":
            assert_close(found[layer].neuron_gradient, of_inputs[layer])


def test_inputs_of_a_layer_that_runs_twice() -> None:
    model, batches = seeded(Twice), [images().flatten(1)[:, :6]]
    found = sensitivity(model, batches, layers=["again", "head"])
    _, of_inputs = loop_sensitivity(model, batches, ["again", "head"])
    assert_close(found["again"].neuron_gradient, of_inputs["again"])
    assert_close(found["head"].neuron_gradient, of_inputs["head"])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "convnext_atto", "swin"])
def test_models_of_timm_and_torchvision(name: str) -> None:
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if name == "swin":
        models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
        model = seeded(lambda: models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=5))
    else:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        size = {"img_size": 32, "depth": 2} if name.startswith("vit") else {}
        model = seeded(lambda: timm.create_model(name, num_classes=5, **size))
    assert_is_the_loops(model, pixels)


def test_a_text_model_whose_mask_depends_on_the_tokens() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    options = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**options, intermediate_size=12, max_position_embeddings=16, num_labels=3)
    model = seeded(lambda: transformers.BertForSequenceClassification(config))
    tokens = torch.arange(30).view(5, 6) % 20
    assert_is_the_loops(Masked(model), tokens)


class Masked(nn.Module):
    """A text model that is told which tokens are padding."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.inner(input_ids=tokens, attention_mask=(tokens > 3).long()).logits
        return logits


def assert_is_the_loops(model: nn.Module, inputs: Tensor) -> None:
    """Compare with a backward pass for each sample."""
    with warnings.catch_warnings(action="ignore", category=LayerWarning):  # the attention of Swin reads some weights
        found = sensitivity(model, inputs.split(2))
    assert len(found) > 4
    of_weights, of_inputs = loop_sensitivity(model, [inputs], list(found))
    for layer, expected in of_weights.items():
        assert_close(found[layer].weight, expected)
        assert_close(found[layer].neuron_gradient, of_inputs[layer])


def test_the_last_layer_has_the_closed_form() -> None:
    model, pixels = seeded(TinyViT), images()
    features: list[Tensor] = []
    handle = model.get_submodule("head").register_forward_pre_hook(lambda _, args: features.append(args[0].detach()))
    with torch.no_grad():
        logits = model(pixels)
    handle.remove()
    found = sensitivity(model, [pixels], layers=["head"], temperature=2.0)["head"]
    assert_close(found.weight, weight_sensitivity(features[0], logits, temperature=2.0), tolerance=1e-12)
    assert_close(found.neuron_aggregate, found.weight.mean(0), tolerance=1e-12)


def assert_close(found: Tensor, expected: Tensor, *, tolerance: float = 1e-9) -> None:
    """Compare relative to the largest entry: small ones may be what is left of sums that cancel, as in keys."""
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.max()) + 1e-16)
    assert float(expected.max()) > 0

"""Models whose head is computed from other parameters, pruned, quantised or adapted, each in a function."""

import warnings
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.reliability.models_world import Net

__all__ = ["lora"]


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, tensor: Tensor) -> Tensor:
        return 2 * tensor


def parametrized_weight_and_bias() -> nn.Module:
    model = Net()
    for name in ("weight", "bias"):
        parametrize.register_parametrization(model.fc, name, Doubled())
    return model


def older_weight_norm() -> nn.Module:
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch has a newer one
        nn.utils.weight_norm(model.fc)
    with torch.no_grad():
        model.fc.weight_g.mul_(3)  # the attribute `weight` is that of before
    return model


def older_spectral_norm() -> nn.Module:
    model = Net()
    nn.utils.spectral_norm(model.fc)
    with torch.no_grad():
        model.fc.weight_orig[0].mul_(3)  # as above
    return model


def spectral_norm() -> nn.Module:
    model = Net()
    parametrizations.spectral_norm(model.fc)
    return model


def pruned_by_its_owner() -> nn.Module:
    model = Net()
    prune.l1_unstructured(model.fc, "weight", amount=0.3)
    prune.l1_unstructured(model.fc, "bias", amount=0.5)
    with torch.no_grad():
        model.fc.weight_orig.mul_(2)  # as above
        model.fc.bias_orig.mul_(2)
    return model


def _quantised(model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants torchao to be used, and says so in several ways
        return torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}, dtype=torch.qint8)


def quantised() -> nn.Module:
    return _quantised(Net())  # type: ignore[no-any-return]  # a module


def quantised_body() -> nn.Module:
    model = Net().eval()
    model.body = _quantised(model.body)
    return model


def lora(**options: Any) -> Any:
    """Return a model with an adapter that does something."""
    return peft.get_peft_model(Net(), peft.LoraConfig(r=2, init_lora_weights=False, **options))


def lora_on_the_head() -> nn.Module:
    return lora(target_modules=["fc"])  # type: ignore[no-any-return]  # a module


def dora_on_the_head() -> nn.Module:
    return lora(target_modules=["fc"], use_dora=True)  # type: ignore[no-any-return]  # as above


def lora_merged() -> nn.Module:
    model = lora(target_modules=["body.1", "fc"])
    model.merge_adapter()
    return model  # type: ignore[no-any-return]  # as above


def lora_merged_and_unloaded() -> nn.Module:
    return lora(target_modules=["fc"]).merge_and_unload()  # type: ignore[no-any-return]  # as above


def lora_on_the_body() -> nn.Module:
    return lora(target_modules=["body.1"])  # type: ignore[no-any-return]  # as above


def lora_with_a_trained_head() -> nn.Module:
    model = lora(target_modules=["body.1"], modules_to_save=["fc"])
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 0.3
    return model  # type: ignore[no-any-return]  # as above

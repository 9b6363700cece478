"""What `fit_features` costs against its matrix products, and against gradients sample by sample."""

import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.measuring import Outcome, ratios, seconds
from opnp import OPNP, Ratios

__all__ = ["head_products"]

_CLASSES, _FEATURES, _SAMPLES = 1000, 2048, 8192
_FEW = 8
"""Samples that the loop over single samples is timed on."""
_RATIOS = Ratios(w_min=0.3, w_max=0.005, o_min=0.1, o_max=0.05)
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def head_products(*, repeats: int) -> Iterator[Outcome]:
    """Yield the time of `fit_features` with masks and pruned head as ratios."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(_SAMPLES, _FEATURES, generator=generator).to(_DEVICE)
    weight = torch.randn(_CLASSES, _FEATURES, generator=generator).mul(0.05).to(_DEVICE)

    def fit(neuron: str) -> None:
        detector = OPNP(ratios=_RATIOS, shaping=None, neuron="gradient" if neuron == "gradient" else "aggregate")
        detector.fit_features(features, weight=weight, bias=None)
        detector.pruned_head.weight[detector.masks.kept].sum()

    def products() -> None:
        shares = features @ weight.T
        shares.T @ features
        shares @ weight

    shape = f"C {_CLASSES}, D {_FEATURES}, N {_SAMPLES}"
    for neuron in ("gradient", "aggregate"):
        values = ratios(lambda: fit(neuron), products, repeats=repeats)  # noqa: B023  # called at once
        yield Outcome(f"fit_features beside its three products, {shape}, neuron {neuron}", values, 1.3)

    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # a loop of small steps gains little by more threads, products do
    loops = []
    for _ in range(repeats):
        loop = seconds(lambda: _per_sample(features[:_FEW], weight), is_wall=True) * _SAMPLES / _FEW
        loops.append(loop / seconds(lambda: fit("gradient"), is_wall=True))
    torch.set_num_threads(threads)
    yield Outcome(
        f"a loop of gradients, sample by sample, against fit_features, {shape}, all cores",
        tuple(loops),
        40,
        kind="at least",
        notes=f"the loop is timed on {_FEW} samples and scaled",
    )


def _per_sample(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sensitivities of weights and neurons by a backward pass for each sample."""
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    with torch.no_grad():
        head.weight.copy_(weight)
    of_weights = torch.zeros_like(weight, dtype=torch.float64)
    of_neurons = torch.zeros_like(weight[0], dtype=torch.float64)
    for row in features:
        leaf = row.detach().clone().requires_grad_()
        head.zero_grad()
        energy = -torch.logsumexp(head(leaf[None]), 1)
        energy.sum().backward()
        if head.weight.grad is not None and leaf.grad is not None:
            of_weights += head.weight.grad.abs()
            of_neurons += leaf.grad.abs()
    return of_weights / len(features), of_neurons / len(features)

"""Worlds in which it is known what pruning does: features, heads, and classes that the head has never seen."""

from dataclasses import dataclass

import torch
from torch import Tensor

from opnp import OPNP, auroc

__all__ = [
    "DISTURBED",
    "World",
    "disturbed_world",
    "inhibited_world",
    "silent_world",
    "solved_world",
    "spare_world",
    "spurious_world",
    "twin_world",
]

_CLASSES, _BLOCK = 10, 6

DISTURBED = torch.tensor([5, 29, 47])
"""The large neurons of `disturbed_world` and `twin_world`."""


@dataclass(frozen=True, eq=False)
class World:
    """A head with the data around it: features of training and of held-out ID samples, and of unseen classes."""

    weight: Tensor
    bias: Tensor
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: Tensor
    unseen: Tensor

    def fitted(self, detector: OPNP, *, is_labelled: bool = True, validation_ood: Tensor | None = None) -> OPNP:
        """Return the detector, fitted with the held-out samples, and their labels unless told otherwise."""
        return detector.fit_features(
            self.train[0],
            weight=self.weight,
            bias=self.bias,
            validation=self.validation if is_labelled else self.validation[0],
            validation_ood=validation_ood,
        )

    def auroc(self, detector: OPNP) -> float:
        """Return the AUROC of ID test samples against the unseen classes."""
        return auroc(detector.score_features(self.test), detector.score_features(self.unseen))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _blocks(classes: int, width: int) -> Tensor:
    """Return which class each feature belongs to, shape ``(classes, classes * width)``: 1 in its block, else 0."""
    return torch.eye(classes).repeat_interleave(width, dim=1)


def _active(pattern: Tensor, generator: torch.Generator, *, background: float = 0.05) -> Tensor:
    """Return features that follow patterns of shape ``(samples, features)``, with noise, as after a ReLU."""
    noise = torch.randn(pattern.shape, generator=generator)
    return (pattern * (1 + 0.3 * noise) + background * noise).relu()


def _unseen_patterns(samples: int, generator: torch.Generator) -> Tensor:
    """Return patterns of classes that are in no block: as many active features as a known class has, anywhere."""
    prototypes = torch.zeros(8, _CLASSES * _BLOCK)
    for row in prototypes:
        row[torch.randperm(_CLASSES * _BLOCK, generator=generator)[:_BLOCK]] = 1
    return prototypes[torch.arange(samples) % len(prototypes)]


def _world(weight: Tensor, *, seed: int, disturbed: Tensor | None = None, background: float = 0.05) -> World:
    """Return a world of blocks: a class is known by its own features; `disturbed` ones are loud in every sample."""
    generator = _generator(seed)
    patterns = _blocks(_CLASSES, _BLOCK)

    def drawn(samples: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, _CLASSES, (samples,), generator=generator)
        features = _active(patterns[labels], generator, background=background)
        return _with_disturbance(features, disturbed, generator), labels

    return World(
        weight=weight,
        bias=torch.zeros(_CLASSES),
        train=drawn(2000),
        validation=drawn(1000),
        test=drawn(1000)[0],
        unseen=_with_disturbance(_active(_unseen_patterns(1000, generator), generator), disturbed, generator),
    )


def _with_disturbance(features: Tensor, disturbed: Tensor | None, generator: torch.Generator) -> Tensor:
    if disturbed is None:
        return features
    loudness = torch.rand(len(features), len(disturbed), generator=generator) * 8
    return features.index_copy(1, disturbed, loudness)


def spurious_world(*, seed: int = 0) -> World:
    """Return a world whose head has learnt spurious weights.

    Beside the weights of its own features each class has random ones for those of the other classes. When these are
    active the class is not in question, so the energy hardly feels these weights: their sensitivity is the lowest.
    In a sample of an unknown class they make some known class look likely.
    """
    own = _blocks(_CLASSES, _BLOCK)
    spurious = 0.75 * torch.randn(own.shape, generator=_generator(seed + 50)).abs() * (1 - own)
    return _world(1.2 * own + spurious, seed=seed)


def inhibited_world(*, seed: int = 0) -> World:
    """Return a world whose head holds every class down by the features of the others.

    These weights are negative, and the energy of known samples hardly feels them: without them it lies lower for
    every sample.
    """
    own = _blocks(_CLASSES, _BLOCK)
    holding = 0.2 * torch.randn(own.shape, generator=_generator(seed + 50)).abs() * (1 - own)
    return _world(0.5 * own - holding, seed=seed, background=0.6)


def disturbed_world(*, seed: int = 0) -> World:
    """Return a world with three large neurons that have nothing to do with the class.

    They add the same to every logit, which no answer depends on, and the energy feels them most of all.
    """
    weight = (1.2 * _blocks(_CLASSES, _BLOCK)).index_fill(1, DISTURBED, 1.5)
    return _world(weight, seed=seed, disturbed=DISTURBED)


def twin_world(*, seed: int = 0) -> World:
    """Return the disturbed world with two classes that are told apart by the large neurons alone.

    Class 1 has the features of class 0; the first large neuron is louder than the second in one, softer in the other.
    To remove them helps detection as before, and loses a class.
    """
    generator = _generator(seed)
    own = _blocks(_CLASSES, _BLOCK)
    own[1] = own[0]
    first, second = DISTURBED[:2].tolist()
    weight = (1.2 * own).index_fill(1, DISTURBED, 1.5)
    weight[0, first], weight[0, second] = 1.7, 1.3
    weight[1, first], weight[1, second] = 1.3, 1.7

    def drawn(samples: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, _CLASSES, (samples,), generator=generator)
        features = _with_disturbance(_active(own[labels], generator), DISTURBED, generator)
        pair = features[:, [first, second]].sort(dim=1, descending=True).values
        turned = torch.where((labels == 1)[:, None], pair.flip(1), pair)
        return features.index_copy(1, DISTURBED[:2], turned), labels

    return World(weight, torch.zeros(_CLASSES), drawn(2000), drawn(1000), drawn(1000)[0], torch.ones(1, own.shape[1]))


def silent_world(*, seed: int = 0) -> World:
    """Return a world in which every class is known by the neurons that are all but silent.

    A class has weights for its own neurons alone, negative ones, and these neurons are soft in its samples: the
    weights that matter are those with the lowest sensitivity, and the largest features are much of the evidence.
    """
    generator = _generator(seed)
    patterns = _blocks(_CLASSES, 4)

    def loud(samples: int) -> Tensor:
        return 0.5 - torch.rand(samples, patterns.shape[1], generator=generator).clamp_min(1e-6).log()

    def drawn(samples: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, _CLASSES, (samples,), generator=generator)
        leak = torch.rand(samples, 1, generator=generator) * torch.rand(samples, patterns.shape[1], generator=generator)
        return torch.where(patterns[labels] > 0, 1.5 * leak, loud(samples)), labels

    return World(-6 * patterns, torch.full((_CLASSES,), 5.0), drawn(2000), drawn(1000), drawn(1000)[0], loud(1000))


def spare_world(*, seed: int = 0) -> World:
    """Return a world in which much can be pruned and nothing is won: nine weights in ten are zero."""
    return _world(1.2 * _blocks(_CLASSES, _BLOCK), seed=seed, background=0.6)


def solved_world(*, seed: int = 0) -> World:
    """Return a world in which the plain energy finds every class that is left out."""
    return _world(3 * _blocks(_CLASSES, _BLOCK), seed=seed)

"""One pass of a model over the images of a set: features of this process's rows, joined with those of the others."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.data import default_collate

from opnp.bench.compiled_forward import CompiledForward
from opnp.bench.forward import Forward, target_device
from opnp.bench.model_run import Progress
from opnp.core.checks import require_class_indices
from opnp.data import FeatureSet, ImageSet
from opnp.distributed import Ranks, gathered, row_part, together
from opnp.errors import DataFileError, ModelRunError, OpnpError, OptionError
from opnp.model import Head, HeadStream, head_stream, inputs_of

__all__ = ["FeaturePass", "PassResult"]

_PIECE = 1 << 24
"""Bytes of features that each rank sends at once."""


@dataclass(frozen=True, eq=False, slots=True)
class PassResult:
    """What a pass over a set gave.

    Attributes:
        head: The model's head.
        features: Features and labels of all images in their order; None on ranks that do not write.
        accuracy: Share of right answers, where labels are known and ID; else None.

    """

    head: Head
    features: FeatureSet | None
    accuracy: float | None


@dataclass(frozen=True, eq=False, slots=True)
class FeaturePass:
    """A model and how it is run.

    Attributes:
        model: The model; it comes back as it was.
        head: Dotted name of its head; None to search.
        device: Where to run; None for where the model is.
        forward: Options of the forward pass.
        compiled: The model to be compiled, where `forward` asks for that.
        batch_size: Images a batch.
        workers: Processes that read and prepare images; 0 to do so here.
        dtype: Type of the features.
        ranks: This process's place among those that share the work.
        progress: Wrapper of iterables that shows progress, or None.

    """

    model: nn.Module
    head: str | None
    device: torch.device | str | None
    forward: Forward
    compiled: CompiledForward | None
    batch_size: int
    workers: int
    dtype: torch.dtype
    ranks: Ranks
    progress: Progress

    def batches(self, images: ImageSet, rows: range | None = None) -> Iterable[Any]:
        """Return the batches of images, of all rows or of some, with progress shown."""
        is_pinned = target_device(self.model, self.device).type == "cuda" and torch.cuda.is_available()
        batches = images.batches(self.batch_size, rows=rows, workers=self.workers, is_pinned=is_pinned)
        return batches if self.progress is None else self.progress(batches)

    def result(self, images: ImageSet, *, is_inside: bool) -> PassResult:
        """Return features, labels and accuracy of images, computed by all ranks together.

        Raises:
            OpnpError: If that fails here.
            DistributedError: If it fails on another rank.

        """
        with together(self.ranks):
            start, stop = self.ranks.part(len(images))
            # Without rows of its own a rank still needs head and width: of the first image, which then is not counted.
            rows = range(start, stop) if start < stop else range(1)
            head, features, right = self._part(images, rows, is_inside=is_inside)
            if start == stop:
                features, right = features[:0], 0
        whole = _joined(features, len(images), self.ranks)
        right = sum(int(each) for each in gathered(torch.tensor(right), self.ranks))
        labels = images.labels if is_inside else None
        accuracy = None if labels is None else right / len(images)
        return PassResult(head, None if whole is None else FeatureSet(whole, labels), accuracy)

    def _part(self, images: ImageSet, rows: range, *, is_inside: bool) -> tuple[Head, Tensor, int]:
        """Return the head, the features of some rows, and how many of these the model answers right."""
        target = target_device(self.model, self.device)
        with self.forward.laid_out(self.model), self.forward.autocast(target):
            batches = self.forward.moved(self.batches(images, rows), target)
            try:
                with self._opened(images, rows, batches) as (stream, head):
                    _require_classes(images, head.module.out_features, is_inside=is_inside)
                    return head, *self._read(stream, len(rows), is_inside=is_inside)
            except (OpnpError, OSError):
                raise
            except Exception as error:
                raise ModelRunError(
                    f"The model failed on {images.source.path}: {type(error).__name__}: {error} Do size, channels and "
                    f"device fit it?"
                ) from error

    @contextmanager
    def _opened(self, images: ImageSet, rows: range, batches: Iterable[object]) -> Iterator[tuple[HeadStream, Head]]:
        if self.compiled is None:
            with head_stream(self.model, batches, head=self.head, device=self.device) as stream:
                yield stream, stream.head
            return
        probe = inputs_of(default_collate([images[index] for index in rows[:2]]))
        with (
            self.compiled.opened(probe, head=self.head, device=self.device) as (cut, head),
            head_stream(cut, batches) as stream,
        ):
            yield stream, head

    def _read(self, stream: HeadStream, rows: int, *, is_inside: bool) -> tuple[Tensor, int]:
        features, filled, right = torch.empty(0, dtype=self.dtype), 0, 0
        for inputs, logits, targets in stream.batches:
            if filled == 0:
                features = torch.empty(rows, inputs.shape[1], dtype=self.dtype)
            stop = filled + len(inputs)
            features[filled:stop] = _stored(inputs.cpu(), self.dtype)
            filled = stop
            if is_inside and targets is not None:
                # bfloat16 has too few digits to tell close logits apart
                answers = logits if self.forward.amp == "none" else _exact_logits(inputs, stream.head.module)
                right += int((answers.argmax(1).cpu() == targets.cpu()).sum())
        return features, right


def _exact_logits(features: Tensor, head: nn.Linear) -> Tensor:
    """Return the logits in the precision of the head's weights."""
    with torch.autocast(features.device.type, enabled=False):
        return linear(features.to(head.weight.dtype), head.weight, head.bias)


def _joined(part: Tensor, rows: int, ranks: Ranks) -> Tensor | None:
    """Return the features of all ranks in the order of the rows, on rank 0; others hold a piece at a time."""
    if ranks.is_alone:
        return part
    width = part.shape[1]
    step = max(1, _PIECE // max(1, width * part.element_size()))
    whole = torch.empty(rows, width, dtype=part.dtype) if ranks.is_first else None
    for offset in range(0, -(-rows // ranks.world), step):
        for rank, piece in enumerate(gathered(part[offset : offset + step], ranks)):
            if whole is not None:
                start = row_part(rows, rank=rank, world=ranks.world)[0] + offset
                whole[start : start + len(piece)] = piece
    return whole


def _require_classes(images: ImageSet, classes: int, *, is_inside: bool) -> None:
    """Raise if the labels of ID images are no classes of the model."""
    names, labels = images.source.class_names, images.labels
    if not is_inside or labels is None:
        return
    if names is not None and len(names) != classes:
        raise DataFileError(
            f"{images.source.path} holds {len(names)} folders of classes, and the model has {classes} classes, so that "
            f"their sorted names do not tell which is which. Name the folders by the index of their class.",
        )
    require_class_indices(labels, classes=classes)


def _stored(features: Tensor, dtype: torch.dtype) -> Tensor:
    limit, largest = torch.finfo(dtype).max, float(features.abs().max())
    if largest > limit:
        raise OptionError(
            f"a feature of {largest:.6g} is too large for {str(dtype).removeprefix('torch.')}, which ends at "
            f"{limit:.6g}: store float32 instead, `--dtype float32`.",
        )
    return features.to(dtype)

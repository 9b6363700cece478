"""One pass of a model over the inputs of a set: features of this process's rows, joined with those of the others."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from opnp.bench.forward import Forward, target_device
from opnp.bench.model_failure import model_failure_text
from opnp.bench.model_run import Progress
from opnp.core.checks import require_class_indices
from opnp.data import FeatureSet, InputSet
from opnp.distributed import Ranks, gathered, gathered_bytes, together
from opnp.errors import DataFileError, ModelRunError, OpnpError, OptionError
from opnp.model import BatchHalving, Head, HeadStream, head_stream

__all__ = ["FeaturePass", "PassResult"]

_PIECE = 1 << 24
"""Bytes of features that each rank sends at once."""


@dataclass(frozen=True, eq=False, slots=True)
class PassResult:
    """What a pass over a set gave.

    Attributes:
        head: The model's head.
        features: Features and labels of all inputs that could be read, in their order; None on ranks that do not
            write.
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
        logits: Where the logits are in its output: an index, a key or attribute; None where that is plain.
        device: Where to run; None for where the model is.
        forward: Options of the forward pass.
        batch_size: Inputs a batch.
        workers: Processes that read and prepare inputs; 0 to do so here.
        dtype: Type of the features.
        ranks: This process's place among those that share the work.
        halving: How batches are run that need more memory than there is.
        progress: Wrapper of iterables that shows progress, or None.

    """

    model: nn.Module
    head: str | None
    logits: int | str | None
    device: torch.device | str | None
    forward: Forward
    batch_size: int
    workers: int
    dtype: torch.dtype
    ranks: Ranks
    halving: BatchHalving
    progress: Progress

    def batches(self, inputs: InputSet, rows: range | None = None) -> Iterable[Any]:
        """Return the batches of inputs, of all rows or of some, with progress shown."""
        is_pinned = target_device(self.model, self.device).type == "cuda" and torch.cuda.is_available()
        batches = inputs.batches(self.batch_size, rows=rows, workers=self.workers, is_pinned=is_pinned)
        return batches if self.progress is None else self.progress(batches)

    def result(self, inputs: InputSet, *, is_inside: bool) -> PassResult:
        """Return features, labels and accuracy of inputs, computed by all ranks together.

        Afterwards the set of every rank knows what could not be read by any.

        Raises:
            OpnpError: If that fails here.
            DistributedError: If it fails on another rank.

        """
        with together(self.ranks):
            rows = range(*self.ranks.part(len(inputs)))
            head, features, right = self._part(inputs, rows, is_inside=is_inside)
        own = [(row, reason) for row, reason in inputs.reasons.items() if row in rows]
        for told in gathered_bytes(json.dumps(own).encode(), self.ranks):
            for row, reason in json.loads(told):
                inputs.skip(row, reason)
        whole = _joined(features, self.ranks)
        right = sum(int(each) for each in gathered(torch.tensor(right), self.ranks))
        readable = inputs.readable
        labels = inputs.labels[readable] if is_inside and inputs.labels is not None else None
        accuracy = None if labels is None else right / len(readable)
        return PassResult(head, None if whole is None else FeatureSet(whole, labels), accuracy)

    def _part(self, inputs: InputSet, rows: range, *, is_inside: bool) -> tuple[Head, Tensor, int]:
        """Return the head, the features of some rows, and how many of these the model answers right."""
        target = target_device(self.model, self.device)
        with self.forward.laid_out(self.model), self.forward.autocast(target):
            batches = self.forward.moved(self._own_or_first(inputs, rows), target)
            try:
                with head_stream(
                    self.model,
                    batches,
                    head=self.head,
                    logits=self.logits,
                    device=self.device,
                    halving=self.halving,
                ) as stream:
                    head = stream.head
                    _require_classes(inputs, len(head.weight), is_inside=is_inside)
                    features, right = self._read(stream, max(1, len(rows)), is_inside=is_inside)
            except (OpnpError, OSError):
                raise
            except (Exception, SystemExit) as error:
                raise ModelRunError(model_failure_text(error, self.model, place=inputs.source.path)) from error
        read = sum(row not in inputs.reasons for row in rows)
        return head, features[:read], right if read else 0

    def _own_or_first(self, inputs: InputSet, rows: range) -> Iterator[Any]:
        """Yield the batches of some rows; where there are none, the first of all, for head and width alone."""
        is_any = False
        for batch in self.batches(inputs, rows):
            is_any = True
            yield batch
        if not is_any:
            yield inputs.first_batch()

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
                answers = logits if self.forward.amp == "none" else _exact_logits(inputs, stream.head)
                right += int((answers.argmax(1).cpu() == targets.cpu()).sum())
        return features, right


def _exact_logits(features: Tensor, head: Head) -> Tensor:
    """Return the logits in the precision of the head's weights."""
    with torch.autocast(features.device.type, enabled=False):
        return linear(features.to(head.weight.dtype), head.weight, head.bias)


def _joined(part: Tensor, ranks: Ranks) -> Tensor | None:
    """Return the features of all ranks in the order of the ranks, on rank 0; others hold a piece at a time."""
    if ranks.is_alone:
        return part
    width = part.shape[1]
    step = max(1, _PIECE // max(1, width * part.element_size()))
    lengths = [int(each) for each in gathered(torch.tensor(len(part)), ranks)]  # what could be read differs
    starts = [0, *accumulate(lengths)]
    whole = torch.empty(starts[-1], width, dtype=part.dtype) if ranks.is_first else None
    for offset in range(0, max(lengths), step):
        for rank, piece in enumerate(gathered(part[offset : offset + step], ranks)):
            if whole is not None:
                start = starts[rank] + offset
                whole[start : start + len(piece)] = piece
    return whole


def _require_classes(inputs: InputSet, classes: int, *, is_inside: bool) -> None:
    """Raise if the labels of ID inputs are no classes of the model."""
    names, labels = inputs.source.class_names, inputs.labels
    if not is_inside or labels is None:
        return
    if names is not None and len(names) != classes:
        raise DataFileError(
            f"{inputs.source.path} names {len(names)} classes, and the model has {classes}, so that the order of the "
            f"names does not tell which is which. Name the classes by their index in the model instead.",
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

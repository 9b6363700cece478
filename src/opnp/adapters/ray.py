"""Detectors on the data sets of Ray: verdicts by `Dataset.map_batches`, and fits whose parts add up.

Sums are values, not actors: a task returns the `FitSum` of one large partition, and further tasks add two of them up,
always the same two. So a task that Ray runs again, because its worker died, neither loses nor doubles a row, and the
detector does not depend on the order in which tasks end.
"""

import ctypes
import logging
import os
import re
import signal
import sys
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opnp import errors
from opnp.adapters.hubs import model_from_name
from opnp.adapters.origin import remembered_model, require_same_model
from opnp.core.checks import Array, as_tensor, checked_head, checked_matrix, require_finite, two_class_head
from opnp.core.labels import class_indices, label_name
from opnp.core.sensitivity import BLOCK_ROWS, with_float64
from opnp.data import ModelInputs, Transform
from opnp.data.images import decoded_image
from opnp.data.texts import checked_text
from opnp.detector import OPNP, Settings
from opnp.detector.fit_pass import FitSum
from opnp.errors import EmptyDataError, InputTypeError, OpnpWarning, OptionError, WorkerError, require_installed
from opnp.model import InputAxes, LogitsSelector, axes_of, find_head, head_stream

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = [
    "BatchOfArrays",
    "Scorer",
    "cluster",
    "cluster_cores",
    "feature_batch",
    "fit",
    "plain_errors",
    "rows_dataset",
    "summed",
    "worker_device",
]

BatchOfArrays = dict[str, NDArray[Any]]
"""A batch as Ray Data gives it: columns by name."""

_INPUTS = {"image": ("image", "bytes"), "text": ("text",)}
"""Columns that a model's inputs are made of, by what the model takes: decoded images, files of images, texts."""
_PARTITION_BYTES = 1 << 28
_NAMED = 5
"""Columns that a message names."""
_OF_OPNP = re.compile(r"^opnp\.errors\.(\w+): (.*)$", flags=re.MULTILINE)
_RAISED = re.compile(r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Exit): .*$", flags=re.MULTILINE)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _HEAP = -1, -3, 1 << 29
"""Of malloc.h, and bytes that a worker may keep."""
_MADE: dict[str, Any] = {}
"""What this worker has made of the run that it is in: one model, one detector."""


# ------------------------------------------------------------------------------------------------------------ verdicts
class Scorer:
    """A detector's verdicts on batches, as a callable class for `Dataset.map_batches`: one model a worker.

    A batch holds `features`, shape ``(batch, features)``, or what a model takes: `image`, uint8 of shape
    ``(height, width, 3)`` each, as ``ray.data.read_images(..., mode="RGB")`` gives it; `bytes`, files of images; or
    `text`. In the place of these columns come `predicted_class`, `class_name` where names are known, and `score`; of a
    calibrated detector `p_value` and `is_ood`. Other columns stay.

    Args:
        detector: The detector, or its file, which every worker must be able to read.
        model: Name of the model, as `opnp.adapters.model_from_name` takes it; None for features, and for the model
            that the detector remembers.
        transform: What makes the inputs of that model; None for what comes with it, or is remembered.
        device: Where to run the model; None for the CPU. A GPU is asked for by ``num_gpus=1`` of `map_batches`.
        is_explained: Whether each member's p-value and its share of the score come along, ``p_value_NAME`` and
            ``share_NAME``.
        columns: Names of columns of numbers that are the features, in their order: those of the fit where it was by
            a table. None for the column `features`, or, in a batch without one, for ``detector.feature_names``.

    Raises:
        OptionError: If the detector belongs to no model, and a batch has no features; if `columns` are others than
            those of the fit, or in another order; or if other columns of a batch have the names of verdicts.
        InputTypeError: If a batch has no column that can be read, or lacks one of the features.
        DataFileError: If an image or a text of a batch cannot be read.

    Example:
        >>> import torch
        >>> rows, weight = torch.rand(300, 4), torch.eye(4)[:3]
        >>> detector = OPNP().fit_features(rows[:200], weight=weight, bias=None).calibrate_features(rows[200:])
        >>> found = Scorer(detector)({"features": rows[:2].numpy(), "id": np.array([7, 8])})
        >>> sorted(found), found["id"].tolist()
        (['id', 'is_ood', 'p_value', 'predicted_class', 'score'], [7, 8])

    """

    def __init__(
        self,
        detector: OPNP | str | os.PathLike[str],
        model: str | None = None,
        *,
        transform: Transform | None = None,
        device: str | None = None,
        is_explained: bool = False,
        columns: Sequence[str] | None = None,
    ) -> None:
        """Load the detector, and the model if it is named."""
        self.detector = detector if isinstance(detector, OPNP) else OPNP.load(detector)
        self._file = Path() if isinstance(detector, OPNP) else Path(detector)
        self._device, self._is_explained = device, is_explained
        self._columns = None if columns is None else tuple(columns)
        names = self.detector.feature_names
        if self._columns is not None and names is not None and self._columns != names:
            is_order = sorted(self._columns) == sorted(names)
            raise OptionError(
                f"`columns` must be those of the detector's fit in their order, {_shown(names)}, got "
                f"{'another order' if is_order else 'others'}, {_shown(self._columns)}: leave `columns` out."
            )
        self._transform = None if model is None else self._opened(model, transform)

    def __call__(self, batch: BatchOfArrays) -> BatchOfArrays:
        """Return a batch with verdicts in the place of what they are about."""
        columns = self._columns or self.detector.feature_names or ()
        if self._columns is None and "features" in batch and "features" not in columns:
            columns = ()
        taken = columns or ("features",)
        missing = [name for name in taken if name not in batch]
        if self._transform is None and not missing:
            rows = _matrix(batch, columns)
        elif self._transform is None and columns and (self._columns is not None or self.detector.origin is None):
            raise InputTypeError(f"A batch must have the columns of the features, and lacks {_shown(missing)}.")
        else:
            transform = self._transform = self._transform or self._opened(None, None)
            inputs, taken = _inputs(batch, transform)
            rows = self.detector.features(inputs).to(self.detector.sensitivity.weight.device)
        others, found = {name: values for name, values in batch.items() if name not in taken}, self.answers(rows)
        if both := sorted(others.keys() & found.keys()):
            raise OptionError(
                f"The batch has columns with the names of verdicts, {', '.join(both)}: rename them, such as by "
                f"`dataset.rename_columns({{{both[0]!r}: {'old_' + both[0]!r}}})`."
            )
        return others | found

    def answers(self, features: Tensor) -> BatchOfArrays:
        """Return the columns of verdicts on features, shape ``(batch, features)``."""
        detector = self.detector
        if detector.is_calibrated:
            found = detector.verdict_features(features)._asdict()
        else:
            found = {
                "predicted_class": detector.classify_features(features),
                "score": detector.score_features(features),
            }
        if self._is_explained:
            why = detector.explain_features(features)
            for place, name in enumerate(why.members):
                found |= {f"p_value_{name}": why.p_value[:, place], f"share_{name}": why.share[:, place]}
        columns = {name: values.cpu().numpy() for name, values in found.items()}
        columns["score"] = columns["score"].astype(np.float64)
        names = detector.class_names
        if names is None:
            return columns
        named = np.asarray([names[number] for number in columns["predicted_class"]], dtype=object)
        return {"predicted_class": columns.pop("predicted_class"), "class_name": named} | columns

    def _opened(self, name: str | None, given: Transform | None) -> Transform:
        """Return what makes the inputs of a model, and tie the detector to it: by name, or as it remembers it."""
        origin = self.detector.origin
        if origin is not None:
            name, model, known = remembered_model(origin, self._file, name=name)
        elif name is not None:
            model, known = model_from_name(name)
        else:
            raise OptionError(
                "The detector does not know the model that it was fitted on: give `model`, or a column `features`."
            )
        transform = given or known
        if transform is None:
            raise OptionError(_no_transform(name))
        if origin is not None:
            require_same_model(origin, model, transform, head_sha256=self.detector.head_digest)
        self.detector.attach(model, device=self._device)
        return transform


def _no_transform(name: str) -> str:
    return (
        f"No preprocessing is known for the model {name!r}: give `transform`, such as `opnp.data.Preprocessing(...)`."
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _matrix(batch: Mapping[str, NDArray[Any]], columns: Sequence[str] = ()) -> Tensor:
    """Return the features of a batch: columns of numbers, or, where none are named, one column of rows."""
    if columns:
        values = np.stack([_numbers(batch, name) for name in columns], axis=1)
        return as_tensor(values if values.dtype.kind == "f" else values.astype(np.float64))
    return checked_matrix(as_tensor(_numbers(batch, "features")), name="features", axes="(batch, features)")


def _numbers(batch: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    """Return a column as an array of numbers, where it holds objects too: rows, or numbers such as decimals."""
    values = batch[name]
    try:
        found = np.stack([*values]) if values.dtype == object else values
        found = found.astype(np.float64) if found.dtype == object else found
    except (TypeError, ValueError) as error:
        raise InputTypeError(
            f"The column `{name}` must hold numbers, or rows of them of one length ({error})."
        ) from error
    if found.dtype.kind not in "biuf":
        raise InputTypeError(
            f"The column `{name}` must hold numbers, or rows of them of one length, got {found.dtype}."
        )
    return found


def _inputs(batch: Mapping[str, NDArray[Any]], transform: Transform) -> tuple[ModelInputs, tuple[str, ...]]:
    """Return the inputs that a transform makes of a batch, and the names of the columns they are made of."""
    names = tuple(name for name in _INPUTS[transform.kind] if name in batch)
    if not names:
        wanted = " or ".join(f"`{name}`" for name in _INPUTS[transform.kind])
        raise InputTypeError(f"The model takes {transform.kind}s: a batch must have {wanted}, got {', '.join(batch)}.")
    return transform.batch([transform(_sample(names[0], value)) for value in batch[names[0]]]), names


def _sample(name: str, value: Any) -> object:  # noqa: ANN401  # whatever stands in a column
    if name == "image":
        from PIL import Image

        is_array = isinstance(value, np.ndarray)
        if not (is_array and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3):
            got = f"{value.dtype} of shape {value.shape}" if is_array else type(value).__name__
            raise InputTypeError(
                f"`image` must hold arrays of uint8 of shape (height, width, 3), got {got}: use "
                f"`ray.data.read_images(..., mode='RGB')`."
            )
        return Image.fromarray(np.ascontiguousarray(value))
    return decoded_image(bytes(value)) if name == "bytes" else checked_text(value)


# ------------------------------------------------------------------------------------------------ what a worker makes
def rows_dataset(
    make: Callable[[], Callable[[int, int], Iterable[Any]]], rows: int, *, size: int, device: str | None = None
) -> "Dataset":
    """Return the Ray data set of what workers make of ranges of rows, in the order of the rows.

    Args:
        make: Called once in each worker: returns a function of a range (start, stop), which yields its batches, dicts
            of arrays or tables of Arrow.
        rows: Number of rows.
        size: Rows of a range, at most.
        device: Where the worker computes; of a CUDA device each has one of its own.

    Warns:
        OpnpWarning: If it is a CUDA device, and no worker has a GPU yet.

    """
    import ray

    ranges = [{"start": start, "stop": min(start + size, rows)} for start in range(0, rows, size)]
    items = ray.data.from_items(ranges, override_num_blocks=len(ranges))
    return _mapped(items, _ranges_of, make, batch_size=1, device=device)


def _mapped(
    dataset: "Dataset", task: Callable[..., Any], make: object, *, batch_size: int, device: str | None
) -> "Dataset":
    """Return a data set whose batches go through what each worker makes once.

    As tasks, not actors: workers are used again, and no pool of actors holds the cores that reading and writing need.
    """
    needs: dict[str, Any] = {}
    if worker_device(device) == "cuda":
        needs = {"num_gpus": 1, "max_calls": 0}
        if _resources("GPU") < 1:
            warnings.warn(
                f"No worker of the cluster has a GPU now, for device {device!r}: tasks wait until one is started.",
                OpnpWarning,
                stacklevel=3,
            )
    given = {"make": make, "run": uuid.uuid4().hex}
    return dataset.map_batches(task, fn_kwargs=given, batch_size=batch_size, batch_format="numpy", **needs)


def _resources(name: str) -> float:
    """Return how many of these the cluster has now; one that starts machines on demand may have more later."""
    import ray

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray left its types out
    return found.get(name, 0)


def cluster_cores() -> int:
    """Return how many cores the cluster has now, at least 1."""
    return max(1, int(_resources("CPU")))


def _ranges_of(batch: BatchOfArrays, *, make: Callable[[], Callable[..., Any]], run: str) -> Iterator[Any]:
    yield from _made(make, run)(int(batch["start"][0]), int(batch["stop"][0]))


def _batches_of(batch: BatchOfArrays, *, make: Callable[[], Callable[..., Any]], run: str) -> Any:  # noqa: ANN401  # a batch
    return _made(make, run)(batch)


def _made(make: Callable[[], Any], run: str) -> Any:  # noqa: ANN401  # what was made
    """Return what this worker has made for a run; that of the run before it is given up."""
    if run not in _MADE:
        _keep_heap()
        _MADE.clear()
        _MADE[run] = make()
    return _MADE[run]


def _keep_heap() -> None:
    """Have glibc keep what a block of rows frees for the next one: giving it back took an eighth of the time."""
    mallopt = getattr(ctypes.CDLL(None) if sys.platform == "linux" else None, "mallopt", None)
    if mallopt is not None:  # no other C library has it
        mallopt(_TRIM_THRESHOLD, _HEAP)
        mallopt(_MMAP_THRESHOLD, _HEAP)


class _ModelFeatures:
    """Features of a model, with labels: in each worker the model of one name."""

    def __init__(
        self,
        name: str,
        *,
        weights: str | None,
        transform: Transform | None,
        head: str | None,
        logits: LogitsSelector | None,
        device: str | None,
    ) -> None:
        self.model, known = model_from_name(name, weights=weights)
        found = transform or known
        if found is None:
            raise OptionError(_no_transform(name))
        self.transform, self.head, self.logits, self.device = found, head, logits, device

    def __call__(self, batch: BatchOfArrays) -> BatchOfArrays:
        inputs, _ = _inputs(batch, self.transform)
        label = label_name(batch, where="The batch")
        opened = head_stream(self.model, [inputs], head=self.head, logits=self.logits, device=self.device)
        with opened as stream:
            ((features, _, _),) = stream.batches
        return feature_batch(features, None if label is None else batch[label])


def feature_batch(features: Tensor, labels: Tensor | NDArray[Any] | None) -> BatchOfArrays:
    """Return features, shape ``(batch, features)``, and labels as a batch of Ray; NumPy has no bfloat16."""
    rows = features.float() if features.dtype == torch.bfloat16 else features
    return {"features": rows.cpu().numpy()} | ({} if labels is None else {"label": np.asarray(labels)})


def worker_device(device: str | None) -> str | None:
    """Return what a worker calls a device: it sees one GPU, whatever its number is elsewhere.

    Example:
        >>> worker_device("cuda:3"), worker_device("cpu"), worker_device(None)
        ('cuda', 'cpu', None)

    """
    return "cuda" if (device or "").startswith("cuda") else device


# ---------------------------------------------------------------------------------------------------------------- fits
def fit(
    dataset: "Dataset",
    *,
    detector: OPNP | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    model: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    transform: Transform | None = None,
    head_layer: str | None = None,
    logits: LogitsSelector | None = None,
    batch_size: int = 64,
    device: str | None = None,
    partition_bytes: int = _PARTITION_BYTES,
) -> OPNP:
    """Fit a detector on a Ray data set, and return it, uncalibrated: one task a partition, whose sums add up.

    Partitions are neighbouring blocks of the data set in its order, and the sums are added up two by two in theirs, so
    that the order in which tasks end changes nothing.

    Args:
        dataset: Training data: a column `features`, shape ``(features,)`` a row, with `weight` and `bias`; or, with
            `model`, `image`, `bytes` or `text`, as for `Scorer`. A column `label` or `labels` may hold class indices.
        detector: What is to be fitted; None for ``OPNP()``. It is returned.
        weight: The head's weight, shape ``(classes, features)``.
        bias: The head's bias, shape ``(classes,)``, or None.
        model: Name of the model, as `opnp.adapters.model_from_name` takes it. It is run in tasks, one a worker.
        weights: Its weights, as there.
        transform: What makes its inputs; None for what comes with it.
        head_layer: Dotted name of the model's head; None to find it.
        logits: Where the logits are in the model's output; None where that is plain.
        batch_size: Inputs that the model is run on at once.
        device: Where workers run the model, ``"cuda"`` for one GPU each; None for the CPU. This process finds the head
            on its CPU.
        partition_bytes: Bytes of a partition, at least, but for the last.

    Returns:
        The fitted detector. `calibrate_features`, or `attach` and `calibrate`, make verdicts of its scores.

    Raises:
        OptionError: If neither a head nor a model is given, or both are.
        ShapeError: If features and head do not fit together.
        NonFiniteError: If features or head are not finite.
        EmptyDataError: If there are no rows, or too few to fuse scores by.
        WorkerError: If workers died more often than Ray starts a task again.

    Warns:
        OpnpWarning: If workers need a GPU, and none has one yet.

    """
    require_installed("`opnp.adapters.ray` needs", "ray", extra="ray")
    if (weight is None) == (model is None):
        raise OptionError(
            f"Give either `weight`, the head of features, or `model`, got {'neither' if weight is None else 'both'}."
        )
    detector = OPNP() if detector is None else detector
    place: tuple[str | None, InputAxes | None] = (None, None)
    with plain_errors():
        if model is not None:
            make = partial(
                _ModelFeatures,
                model,
                weights=None if weights is None else os.fspath(weights),
                transform=transform,
                head=head_layer,
                logits=logits,
            )
            own = make(device=None)  # this process may have no such device
            few = dataset.limit(2).iter_batches(batch_size=2, batch_format="numpy", prefetch_batches=0)
            first = next(iter(few), None)
            if first is None:
                raise EmptyDataError("The data set holds no rows: at least one sample is needed.")
            inputs, _ = _inputs(first, own.transform)
            head = find_head(own.model, inputs, head=head_layer, logits=logits)
            weight, bias, place = head.weight, head.bias, (head.name, axes_of(inputs))
            make = partial(make, device=worker_device(device))
            dataset = _mapped(dataset, _batches_of, make, batch_size=batch_size, device=device)
        total = summed(dataset, weight, bias, detector.settings, partition_bytes=partition_bytes)  # type: ignore[arg-type]  # a weight is there
    return detector.fit_sum(total, head_name=place[0], axes=place[1])


def summed(
    dataset: "Dataset",
    weight: Array,
    bias: Array | None,
    settings: Settings,
    *,
    partition_bytes: int = _PARTITION_BYTES,
) -> FitSum:
    """Return the sum over a data set of features, for `OPNP.fit_sum`: the options are those of `fit`.

    Raises:
        ShapeError: If features and head do not fit together.
        NonFiniteError: If the head is not finite.
        ray.exceptions.RayError: If a task fails; `plain_errors` makes the error of opnp of it that the task raised.

    """
    import ray

    rows, shift = checked_head(*two_class_head(as_tensor(weight), None if bias is None else as_tensor(bias)))
    rows, shift = rows.detach().cpu(), None if shift is None else shift.detach().cpu()
    empty = FitSum.zeros(with_float64(rows), None if shift is None else with_float64(shift), settings)
    head = ray.put(_plain_head(empty))
    partition: Any = ray.remote(_partition_sum)
    added: Any = ray.remote(_added)
    tree: list[tuple[int, Any]] = []
    running: deque[Any] = deque()
    for blocks in _partitions(dataset, partition_bytes):
        spans, refs = zip(*blocks, strict=True)
        total, height = partition.remote(head, spans, *refs), 0
        running.append(total)
        while tree and tree[-1][0] == height:
            total, height = added.remote(head, tree.pop()[1], total), height + 1
        tree.append((height, total))
        most = 2 * cluster_cores()  # of now: a cluster grows
        if len(running) > most:  # so that no more blocks are asked for than are worked on
            ray.wait([running.popleft()])
    while len(tree) > 1:
        (_, right), (height, left) = tree.pop(), tree.pop()
        tree.append((height, added.remote(head, left, right)))
    return _received(empty, ray.get(tree[0][1])) if tree else empty


def _partitions(dataset: "Dataset", least: int) -> Iterator[list[tuple[tuple[int, int] | None, Any]]]:
    """Yield neighbouring blocks, each with the rows of it that count, None for all, until they have enough bytes."""
    found: list[tuple[tuple[int, int] | None, Any]] = []
    held = 0
    for bundle in _ordered(dataset):
        refs = bundle.block_refs
        cuts = getattr(bundle, "slices", None) or (None,) * len(refs)
        spans = [None if cut is None else (cut.start_offset, cut.end_offset) for cut in cuts]
        found += zip(spans, refs, strict=True)
        held += bundle.size_bytes()
        if held >= least:
            yield found
            found, held = [], 0
    if found:
        yield found


def _ordered(dataset: "Dataset") -> Iterator[Any]:
    """Yield the blocks of a data set in its order, whatever its context says."""
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield from dataset.iter_internal_ref_bundles()
    finally:
        options.preserve_order = before


def _partition_sum(head: Mapping[str, Any], spans: Sequence[tuple[int, int] | None], *blocks: Any) -> dict[str, Any]:  # noqa: ANN401  # blocks of Ray
    """Return the sum over some blocks, as `_sent` does; a task."""
    from ray.data.block import BlockAccessor

    total = _empty(head)
    classes = len(total.weight)
    for span, block in zip(spans, blocks, strict=True):
        part = block if span is None else BlockAccessor.for_block(block).slice(*span, copy=False)
        accessor = BlockAccessor.for_block(part)
        if accessor.num_rows() == 0:
            continue
        batch = accessor.to_batch_format("numpy")
        if "features" not in batch:
            raise InputTypeError(f"The data set must have a column `features`, got {', '.join(batch)}.")
        features = with_float64(_matrix(batch))
        require_finite(features, name="features")
        label = label_name(batch, where="The data set")
        labels = None if label is None else class_indices(batch[label].copy(), classes=classes)
        for start in range(0, len(features), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            total.add_(features[rows], labels=None if labels is None else labels[rows])
    return _sent(total)


def _added(head: Mapping[str, Any], one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sum of two sums; a task."""
    empty = _empty(head)
    return _sent(_received(empty, one) + _received(empty, other))


def _plain_head(empty: FitSum) -> dict[str, Any]:
    """Return what an empty sum is made of, as arrays and JSON values: nothing else goes over the wire."""
    head = {"weight": empty.weight.numpy(), "bias": None if empty.bias is None else empty.bias.numpy()}
    return head | {"settings": empty.settings.to_json()}


def _empty(head: Mapping[str, Any]) -> FitSum:
    weight, bias = (None if head[name] is None else as_tensor(head[name]) for name in ("weight", "bias"))
    return FitSum.zeros(weight, bias, Settings.from_json(head["settings"]))  # type: ignore[arg-type]  # a weight is there


def _sent(total: FitSum) -> dict[str, Any]:
    """Return a sum as arrays by name."""
    return {name: tensor.numpy() for name, tensor in total.carried().items()}


def _received(empty: FitSum, arrays: Mapping[str, Any]) -> FitSum:
    """Return the sum that `_sent` gave; arrays of the object store are copied, as they must not be written to."""
    return empty.with_carried({name: torch.from_numpy(np.array(values)) for name, values in arrays.items()})


# ------------------------------------------------------------------------------------------------------------- cluster
@contextmanager
def cluster(address: str, *, is_quiet: bool = True, device: str | None = None) -> Iterator[None]:
    """Join a cluster of Ray, or start one on this machine, for the time of the block; order is kept meanwhile.

    A cluster that this process has joined already is used as it is.

    Args:
        address: ``local``; ``auto``, of a process on a node of a cluster or of a job; or the address of a cluster,
            such as ``host:6379``.
        is_quiet: Whether to show no progress; it is shown on a terminal alone.
        device: Where workers shall compute.

    Raises:
        MissingExtraError: If Ray is not installed.
        OptionError: If there is no such cluster; if the address is one of Ray Client; or if workers shall compute on a
            GPU, and this machine alone is the cluster, and has none. Another cluster may start one on demand.

    """
    if address.startswith("ray://"):
        raise OptionError(
            f"`--ray` must be `local`, or the address of a cluster that this machine is a node of, got {address!r}: "
            f"Ray Data does not run through Ray Client. Start the command on a node of the cluster, or by `ray job "
            f"submit`, with `--ray auto`."
        )
    require_installed("`--ray` needs", "ray", extra="ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    os.environ.setdefault(
        "RAY_NUM_REDIS_GET_RETRIES", "1"
    )  # else an address where nobody is takes a quarter of an hour
    import ray
    import ray.data

    is_own = not ray.is_initialized()
    if is_own:
        handler, is_shown = signal.getsignal(signal.SIGTERM), False if address == "local" else None
        try:
            ray.init(address=address, include_dashboard=is_shown, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            raise OptionError(
                f"`--ray` must be `local`, or the address of a cluster that runs, got {address!r} ({reason:.200})."
            ) from error
        finally:
            if handler is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray puts its own there
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.execution_options.preserve_order, context.enable_progress_bars, log.level
    context.execution_options.preserve_order = True
    context.enable_progress_bars = not is_quiet and sys.stderr.isatty()
    log.setLevel(logging.CRITICAL)  # what went wrong is raised
    try:
        if address == "local" and worker_device(device) == "cuda" and _resources("GPU") < 1:
            raise OptionError(
                f"`device` must be one that workers of the cluster have, got {device!r} and no GPU among them: leave "
                f"it out, or use a machine with a GPU."
            )
        yield
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before[:2]
        log.setLevel(before[2])
        if is_own:
            ray.shutdown()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise an error of opnp in a worker as it is, without what Ray puts around it; and say plainly that workers died.

    Raises:
        OpnpError: If a task raised it.
        WorkerError: If a worker died more often than Ray starts a task again.

    """
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        # The error itself does not arrive: Ray Data sends what is printed of it.
        found = _OF_OPNP.findall(str(error))
        if found:
            name, message = found[-1]
            raise getattr(errors, name)(message) from None
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        told = _RAISED.findall(str(error)) or lines  # below what was raised Ray advises on its settings
        raise WorkerError(f"A task of Ray failed: {told[-1]:.300}") from error

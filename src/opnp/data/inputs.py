"""Inputs by path, made ready for a model, in batches: what cannot be read is left out and listed."""

import csv
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import current_process  # noqa: TID251  # asked what this process may do; none is started
from pathlib import Path
from shutil import disk_usage
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from opnp.data.class_order import labels_by_name, warn_of_ambiguous_order
from opnp.data.datasets import SavedDataset, is_saved_dataset
from opnp.data.images import FileList, ImageArrays, ImageFolder
from opnp.data.samples import ModelInputs, SampleKind, Transform, shown_text
from opnp.data.texts import TextFile
from opnp.errors import (
    DataFileError,
    EmptyDataError,
    InputTypeError,
    MissingFileError,
    ModelRunError,
    OpnpError,
    OptionError,
    WorkerError,
)

__all__ = [
    "InputBatches",
    "InputSet",
    "InputSource",
    "is_lost_worker",
    "lost_worker_text",
    "open_inputs",
    "train_and_test",
    "unreadable_summary",
    "usual_workers",
]

_FORMS: dict[SampleKind, str] = {
    "image": "a folder of images, a list of files (.txt, .csv), .safetensors, .npy, .npz, or a saved data set",
    "text": "a .jsonl or .csv file with `text`, or a saved data set",
}
"""Where inputs may come from."""

_SHOWN = 5
_MOMENTS = 1.0
"""Seconds."""
_LOST_WORKER = re.compile(r"DataLoader worker \(pid.*\) (is killed|exited unexpectedly)")

_MOST_WORKERS = 1024
"""Processes: more would take the memory of the machine before the first input is read."""

_USUAL_WORKERS = 8
"""Processes where nobody says how many: with more the batches of most models wait for the model."""
_SHARED_A_WORKER = 1 << 29
"""Bytes of shared memory that a process has to itself: two batches of 256 photographs and room to spare."""
_FEW_BATCHES = 2
"""Batches that no process is started for where nobody says so."""

_ENDINGS = ("", ".safetensors", ".npz", ".npy", ".csv", ".txt", ".jsonl")


class InputSource(Protocol):
    """Samples on disk, in a fixed order; they are read one by one, when they are asked for."""

    @property
    def path(self) -> Path:
        """Where they are."""

    @property
    def kind(self) -> SampleKind:
        """What they are."""

    @property
    def names(self) -> Sequence[str]:
        """What each is called: its path in the folder or as the list has it, else its row."""

    @property
    def labels(self) -> Sequence[int] | None:
        """Their classes, or None."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, where these gave them their numbers; else None."""

    def __len__(self) -> int:
        """Return how many there are."""

    def sample(self, index: int) -> Any:  # noqa: ANN401  # an image of Pillow or a text, as `kind` says
        """Return one: an image of Pillow, or a text.

        Raises:
            DataFileError: If it cannot be read; its text is the reason alone.

        """

    def digest(self) -> str:
        """Return the SHA-256 of them all."""


class InputSet(Dataset[object]):
    """Inputs made ready for a model: items are ``(input, label)``, or inputs alone where there are no labels.

    Args:
        source: The samples.
        transform: What is done to each.
        is_strict: Whether the first sample that cannot be read is an error; else such ones are left out of batches, and
            are in `unreadable` afterwards.

    Raises:
        InputTypeError: If the samples are images and the transform takes texts, or the reverse.

    """

    def __init__(self, source: InputSource, transform: Transform, *, is_strict: bool = False) -> None:
        """Keep the arguments."""
        if source.kind != transform.kind:
            raise InputTypeError(
                f"{source.path} holds {source.kind}s, and the model takes {transform.kind}s: expected "
                f"{_FORMS[transform.kind]}.",
            )
        self.source = source
        self.transform = transform
        self.is_strict = is_strict
        self._reasons: dict[int, str] = {}

    def with_labels(self, labels: Sequence[int] | None, class_names: Sequence[str] | None) -> "InputSet":
        """Return the same inputs with other labels, none of them read yet."""
        names = None if class_names is None else tuple(class_names)
        source = replace(self.source, labels=labels, class_names=names)  # type: ignore[type-var]  # each is a dataclass
        return InputSet(source, self.transform, is_strict=self.is_strict)

    def __len__(self) -> int:
        """Return the number of samples, those that cannot be read counted too."""
        return len(self.source)

    def __getitem__(self, index: int) -> ModelInputs | tuple[ModelInputs, int]:
        """Return one input, with its label where that is known.

        Raises:
            DataFileError: If the sample cannot be read.

        """
        row = range(len(self))[index]  # an IndexError ends a loop over the set
        try:
            inputs = self.read(row)
        except DataFileError as error:
            raise self._error(row, str(error)) from error
        return inputs if self.source.labels is None else (inputs, self.source.labels[row])

    @property
    def names(self) -> Sequence[str]:
        """What each sample is called."""
        return self.source.names

    @property
    def labels(self) -> Tensor | None:
        """Classes of all samples, shape ``(inputs,)``, int64, or None; those of what was read: ``labels[readable]``."""
        labels = self.source.labels
        return None if labels is None else torch.tensor(labels, dtype=torch.int64, device="cpu")

    @property
    def reasons(self) -> Mapping[int, str]:
        """Why samples could not be read, by row in ascending order: of those that batches came upon so far."""
        return dict(sorted(self._reasons.items()))

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Names of the samples that batches could not read so far, in the order of rows, each with the reason."""
        return tuple((self.names[row], reason) for row, reason in self.reasons.items())

    @property
    def readable(self) -> Tensor:
        """Rows that are not known to be unreadable, int64: after a pass, those that were read."""
        is_readable = torch.ones(len(self), dtype=torch.bool, device="cpu")
        is_readable[list(self._reasons)] = False
        return is_readable.nonzero()[:, 0]

    def batches(
        self, batch_size: int, *, rows: range | None = None, workers: int | None = 0, is_pinned: bool = False
    ) -> "InputBatches":
        """Return the batches of all inputs in their order; torch's global random state is left alone.

        A batch is ``(inputs, labels)``, or the inputs alone where there are no labels. Samples that cannot be read are
        left out, of later batches too, so that every pass has the same rows.

        Args:
            batch_size: Inputs a batch.
            rows: Which inputs; None for all.
            workers: Processes that read and prepare inputs ahead of time; 0 to do so here; None for `usual_workers()`
                with images to decode of more than two batches, else 0. The batches are the same.
            is_pinned: Whether batches lie in page-locked memory, for a CUDA device.

        Raises:
            OptionError: If `batch_size` is below 1, or `workers` does not lie in 0 to 1024.

        """
        chosen: Sequence[int] = range(len(self)) if rows is None else rows
        if self._reasons:
            chosen = [row for row in chosen if row not in self._reasons]
        batches = InputBatches(self, chosen, batch_size, workers=workers or 0, is_pinned=is_pinned)
        is_decoded = isinstance(self.source, ImageArrays)
        if workers is None and self.source.kind == "image" and not is_decoded and len(batches) > _FEW_BATCHES:
            return replace(batches, workers=usual_workers())
        return batches

    def first_batch(self) -> Any:  # noqa: ANN401  # as batches are
        """Return a batch of the first input that can be read; what cannot is not counted as unreadable yet.

        Raises:
            EmptyDataError: If none can be read.
            DataFileError: If the first one cannot be read, and `is_strict`.

        """
        fresh = InputSet(self.source, self.transform, is_strict=self.is_strict)
        for batch in fresh.batches(1):
            return batch
        raise EmptyDataError(f"{self.source.path} holds no input.")

    def read(self, row: int) -> ModelInputs:
        """Return the input of a row, without a batch axis.

        Raises:
            DataFileError: If the sample cannot be read, or the transform fails on it for its values or for want of
                memory; its text is the reason alone.
            ModelRunError: If the transform fails otherwise; the message names the sample.

        """
        sample = self.source.sample(row)
        try:
            return self.transform(sample)
        except OpnpError:
            raise
        except (OSError, ValueError, MemoryError) as error:
            raise DataFileError(str(error).partition("\n")[0] or type(error).__name__) from error
        except Exception as error:
            raise ModelRunError(
                f"{self.source.path}: what makes the model's inputs failed on {shown_text(self.names[row])}: "
                f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            ) from error

    def stacked(self, rows: Sequence[int], contents: Sequence[ModelInputs]) -> Any:  # noqa: ANN401  # as batches are
        """Return the batch of inputs that were read of some rows."""
        inputs = self.transform.batch(contents)
        labels = self.source.labels
        if labels is None:
            return inputs
        return inputs, torch.tensor([labels[row] for row in rows], dtype=torch.int64, device="cpu")

    def skip(self, row: int, reason: str) -> None:
        """Count a row as unreadable from now on.

        Raises:
            DataFileError: If `is_strict`.

        """
        if self.is_strict:
            raise self._error(row, reason)
        self._reasons[row] = reason

    def require_some(self) -> None:
        """Raise if every sample is known to be unreadable.

        Raises:
            EmptyDataError: If so.

        """
        if self._reasons and len(self._reasons) == len(self):
            summary = unreadable_summary(self.unreadable, total=len(self))
            raise EmptyDataError(f"{self.source.path} holds nothing to work on: {summary}")

    def _error(self, row: int, reason: str) -> DataFileError:
        name, why = shown_text(self.names[row]), shown_text(reason)
        return DataFileError(f"{self.source.path}: {name} cannot be read ({why}): mend or remove it.")


def usual_workers() -> int:
    """Return how many processes read images where nobody says: one a core, at most 8; ranks of one machine share them.

    Fewer, down to 0, where the memory that batches come through is small: containers have 64 MB where nobody says more.
    0 in a daemonic process, which may start none.
    """
    if current_process().daemon:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = min(cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), _USUAL_WORKERS)  # as torchrun sets it
    shared = Path("/dev", "shm")
    return min(found, disk_usage(shared).free // _SHARED_A_WORKER) if shared.is_dir() else found


def unreadable_summary(unreadable: Sequence[tuple[str, str]], *, total: int) -> str:
    """Return one line about samples that could not be read, the first five by name, or an empty text for none.

    Args:
        unreadable: Names and reasons.
        total: Number of all samples.

    Example:
        >>> unreadable_summary([("a.png", "truncated"), ("b.png", "no image")], total=9)
        '2 of 9 inputs could not be read: a.png (truncated), b.png (no image)'

    """
    if not unreadable:
        return ""
    shown = ", ".join(f"{shown_text(name)} ({shown_text(reason)})" for name, reason in unreadable[:_SHOWN])
    more = ", ..." if len(unreadable) > _SHOWN else ""
    return f"{len(unreadable)} of {total} inputs could not be read: {shown}{more}"


@dataclass(frozen=True, eq=False, slots=True)
class InputBatches:
    """Batches of some inputs of a set, in the order of the rows; torch's random state is left alone.

    A batch is ``(inputs, labels)``, or the inputs alone where there are no labels. What cannot be read is left out of
    its batch, and the set is told; a batch of which nothing can be read is left out.

    Attributes:
        inputs: The set.
        rows: Which of its inputs.
        batch_size: Inputs a batch; the last batch, and those with unreadable inputs, have fewer.
        workers: Processes that make the inputs ahead of time, no more than there are batches; 0 to make them here, when
            they are asked for.
        is_pinned: Whether batches lie in page-locked memory, which a CUDA device copies from without waiting.

    Raises:
        OptionError: If `batch_size` is no positive integer, or `workers` does not lie in 0 to 1024.

    """

    inputs: InputSet
    rows: Sequence[int]
    batch_size: int
    workers: int = 0
    is_pinned: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.batch_size < 1:
            raise OptionError(f"`batch_size` must be at least 1, got {self.batch_size}.")
        if not 0 <= self.workers <= _MOST_WORKERS:
            raise OptionError(
                f"`workers` must be 0 or the number of processes that read inputs, at most {_MOST_WORKERS}, got "
                f"{self.workers}.",
            )

    def __len__(self) -> int:
        """Return the number of batches, those of which nothing can be read counted too."""
        return (len(self.rows) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches.

        Raises:
            OpnpError: As the set raises it, from whichever process.
            WorkerError: If one of these processes died.

        """
        rows = _Rows(self.inputs)
        loader: DataLoader[object] = DataLoader(
            rows,
            batch_size=self.batch_size,
            sampler=self.rows,
            num_workers=min(self.workers, len(self)),
            pin_memory=self.is_pinned,
            collate_fn=rows.stacked,
            generator=torch.Generator(),
        )
        for content, unreadable in self._received(loader):
            for row, reason in unreadable:
                self.inputs.skip(row, reason)
            if isinstance(content, OpnpError):
                raise content
            if content is not None:  # pinning makes lists of tuples
                yield tuple(content) if isinstance(content, list) else content
        self.inputs.require_some()

    def _received(self, loader: Iterable[Any]) -> Iterator[Any]:
        """Yield what the loader yields; that a worker died may be seen first in what it should have sent."""
        try:
            with torch.device("cpu"):  # whatever the default is, where the loader draws the seed of its workers
                batches = iter(loader)
            yield from batches
        except (ConnectionError, EOFError, RuntimeError) as error:
            if self.workers == 0 or not (isinstance(error, OSError | EOFError) or is_lost_worker(error)):
                raise
            raise WorkerError(lost_worker_text(_cause(error))) from error


def _cause(error: Exception) -> Exception:
    """Return what torch says of a worker that died: where it has not yet, a signal's handler does within moments."""
    if is_lost_worker(error):
        return error
    try:
        time.sleep(_MOMENTS)
    except RuntimeError as told:
        return told
    return error


def is_lost_worker(error: BaseException) -> bool:
    """Return whether torch says that a worker of a loader died; it says so wherever the main process is just then."""
    return isinstance(error, RuntimeError) and _LOST_WORKER.search(str(error)) is not None


def lost_worker_text(error: BaseException) -> str:
    """Return what to say where a worker died."""
    reason = " ".join(str(error).split()).rstrip(".")
    return (
        f"A process that reads inputs ahead of time died ({reason}). Too little memory is the usual cause: give fewer "
        f"`--workers`, or a smaller `--batch-size`."
    )


class _Rows(Dataset[object]):
    """Rows with what was read, and their batches; errors of opnp stand in the place of what they are about.

    As torch would wrap an error that a worker raises.
    """

    def __init__(self, inputs: InputSet) -> None:
        self.inputs = inputs

    def __getitem__(self, row: int) -> tuple[int, object]:
        try:
            return row, self.inputs.read(row)
        except OpnpError as error:
            return row, error

    def stacked(self, items: Sequence[tuple[int, Any]]) -> tuple[object, list[tuple[int, str]]]:
        """Return a batch, an error or None, and what could not be read."""
        unreadable = [(row, str(item)) for row, item in items if isinstance(item, DataFileError)]
        failed = [item for _, item in items if isinstance(item, OpnpError) and not isinstance(item, DataFileError)]
        read = [(row, item) for row, item in items if not isinstance(item, OpnpError)]
        if failed or not read:
            return failed[0] if failed else None, unreadable
        try:
            return self.inputs.stacked([row for row, _ in read], [item for _, item in read]), unreadable
        except OpnpError as error:
            return error, unreadable


_READERS: dict[str, Callable[..., InputSource]] = {
    ".jsonl": TextFile.from_path,
    ".npy": ImageArrays.from_path,
    ".npz": ImageArrays.from_path,
    ".safetensors": ImageArrays.from_path,
    ".txt": FileList.from_path,
}


def open_inputs(
    path: str | os.PathLike[str],
    transform: Transform,
    *,
    is_strict: bool = False,
    is_labelled: bool = True,
    class_names: Sequence[str] | None = None,
) -> InputSet:
    """Return the inputs at a path, made ready for a model.

    Images come from a folder, of which each subfolder is a class: names that are all numbers are the classes
    themselves, others are numbered in sorted order, and a folder without subfolders has no labels; from a list of
    files, ``.txt`` (one path a line) or ``.csv`` (``path`` or ``path,label``), relative to the list; from
    ``.safetensors`` and ``.npz`` files with `images` and perhaps `labels`, and ``.npy`` files, uint8 of shape
    ``(images, height, width, 3)`` or ``(images, height, width)``. Texts come from ``.jsonl`` and ``.csv`` files with
    `text` and perhaps `label`. Both come from data sets of Hugging Face that `save_to_disk` wrote.

    Nothing is read before it is asked for, save labels and the arrays of ``.safetensors`` and ``.npz`` files.

    Args:
        path: The folder or file.
        transform: What is done to each sample: a `Preprocessing` for images, or another `Transform`.
        is_strict: Whether the first sample that cannot be read is an error; else such ones are left out, and are in
            `unreadable` afterwards.
        is_labelled: Whether labels are read; else they may be anything, and a folder's images count at any depth,
            beside subfolders too.
        class_names: Names of the model's classes, in its order, where they are known: classes that the data call by
            these names are numbered as in the model.

    Returns:
        The inputs, in an order that does not change.

    Raises:
        MissingFileError: If there is neither.
        EmptyDataError: If nothing is in it.
        DataFileError: If it is of no such form, or cannot be read.
        InputTypeError: If these are images and the transform takes texts, or the reverse.
        MissingExtraError: If Pillow, or datasets for a data set, is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from opnp.data import Preprocessing
        >>> small = Preprocessing(size=2, resize=2, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         (Path(folder) / name).mkdir()
        ...         Image.new("L", (3, 2), 255).save(Path(folder) / name / "1.png")
        ...     (Path(folder) / "dog" / "2.png").write_text("no image")
        ...     images = open_inputs(folder, small)
        ...     batches = list(images.batches(8))
        8
        >>> [(inputs.shape, labels) for inputs, labels in batches]
        [(torch.Size([2, 3, 2, 2]), tensor([0, 1]))]
        >>> len(images), images.unreadable
        (3, (('dog/2.png', 'no image'),))

    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f"{path} does not exist: expected {_FORMS[transform.kind]}.")
    source = _source(path, transform.kind, is_labelled=is_labelled)
    return _in_class_order(InputSet(source, transform, is_strict=is_strict), class_names)


def _in_class_order(inputs: InputSet, model_names: Sequence[str] | None) -> InputSet:
    """Return the inputs with their classes numbered as in the model, as far as names tell."""
    source = inputs.source
    labels, names = source.labels, source.class_names
    if labels is None or names is None:
        return inputs
    is_stated = isinstance(source, SavedDataset) and source.is_order_stated
    found = None
    if model_names is not None:
        found = labels_by_name(labels, names, model_names, path=source.path, is_order_stated=is_stated)
    if found is not None and model_names is not None:
        return inputs.with_labels(found, model_names)
    if not is_stated:
        warn_of_ambiguous_order(names, path=source.path)
    return inputs


def _source(path: Path, kind: SampleKind, *, is_labelled: bool) -> InputSource:
    if is_saved_dataset(path):
        return SavedDataset.from_path(path, kind, is_labelled=is_labelled)
    if path.is_dir():
        if kind == "text":
            raise InputTypeError(f"{path} is a folder, and the model takes texts: expected {_FORMS[kind]}.")
        return ImageFolder.from_path(path, is_labelled=is_labelled)
    ending = path.suffix.lower()
    if ending == ".csv":
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                fields = next((row for row in csv.reader(file) if row), [])
        except (OSError, UnicodeError, csv.Error) as error:
            raise DataFileError(f"{path} is no readable .csv file ({error}).") from error
        header = [field.strip().casefold() for field in fields]
        is_of_texts = kind == "text" or ("text" in header and "path" not in header)
        reader: Callable[..., InputSource] = TextFile.from_path if is_of_texts else FileList.from_path
        return reader(path, is_labelled=is_labelled)
    if ending not in _READERS:
        raise DataFileError(f"{path} ends in {ending or 'nothing'!r}: expected {_FORMS[kind]}.")
    return _READERS[ending](path, is_labelled=is_labelled)


def train_and_test(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return the paths of training and test samples in a folder: ``train``, and ``test``, ``val`` or ``validation``.

    Each may be a folder, or a file of a kind that `open_inputs` reads: ``train.npz``, ``train.jsonl`` and the like.

    Raises:
        MissingFileError: If one is not there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("train", "val"):
        ...         (Path(folder) / name).mkdir()
        ...     [part.name for part in train_and_test(folder)]
        ['train', 'val']

    """
    path = Path(path)
    train, test = (
        next((place for name in names for ending in _ENDINGS if (place := path / f"{name}{ending}").exists()), None)
        for names in (("train",), ("test", "val", "validation"))
    )
    if train is None or test is None:
        missing = "train" if train is None else "test (or val)"
        raise MissingFileError(
            f"{path} holds no {missing}: it must hold both train and test (or val), as folders or files such as "
            f"train.safetensors, where the training samples are not named apart.",
        )
    return train, test

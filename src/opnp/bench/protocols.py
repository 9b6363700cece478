"""Protocols, read and looked over before anything runs, and what a run over their models leaves beside the records."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from opnp.adapters import folder_name
from opnp.bench.origin import require_set_names
from opnp.bench.records import require_own_results
from opnp.bench.run import require_bench
from opnp.bench.sweep import chosen_curves
from opnp.bench.tables import leaderboard_csv, results_markdown
from opnp.data import InputSet, SampleKind
from opnp.data.inputs import InputSource
from opnp.errors import DataFileError, EmptyDataError, MissingFileError, OptionError
from opnp.files import existing_file, write_atomically
from opnp.values.bench import BenchRecord
from opnp.values.files import RECORD_FILES
from opnp.values.protocols import Protocol, ProtocolModel

__all__ = [
    "PROTOCOLS",
    "MissingPlace",
    "SpreadInputs",
    "listed_models",
    "missing_places",
    "protocol_of_models",
    "read_protocol",
    "require_places",
    "require_protocol",
    "require_protocol_folder",
    "spread_inputs",
    "write_summary",
]

PROTOCOLS = ("paper",)
"""Names of the protocols that come with the package."""

_SUMMARY = ("results.md", "leaderboard.csv")
_ENDING = ".json"


def read_protocol(name: str | os.PathLike[str]) -> Protocol:
    """Return the protocol of a name, or of a JSON file.

    Args:
        name: One of `PROTOCOLS`, or the path of a file that ends in ``.json``.

    Raises:
        OptionError: If there is no protocol of this name, or its models do not do.
        MissingFileError: If there is no such file.
        DataFileError: If the file holds no protocol.

    Example:
        >>> [model.name for model in read_protocol("paper").models][:2]
        ['resnet50', 'vit_b_16']

    """
    path = Path(name)
    if os.fspath(name) in PROTOCOLS:
        text = files("opnp.bench").joinpath("shipped", f"{name}{_ENDING}").read_text(encoding="utf-8")
    elif path.suffix != _ENDING:
        raise OptionError(f"`protocol` must be {', '.join(PROTOCOLS)} or a file that ends in .json, got {str(name)!r}.")
    else:
        text = existing_file(path, content="a protocol").read_bytes().decode("utf-8", errors="replace")
    try:
        return Protocol.from_json(text)
    except DataFileError as error:
        raise DataFileError(f"{name}: {error}") from error


def listed_models(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Return the models that a text file lists, one a line, each with its file of weights, or an empty text.

    A line is a name as ``--model`` takes it, and perhaps a path of weights after it, in quotes where it has spaces;
    empty lines and what follows ``#`` are passed over.

    Raises:
        MissingFileError: If there is no such file.
        DataFileError: If a line is neither.
        EmptyDataError: If there is no model in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "models.txt"
        ...     _ = path.write_text("timm:resnet18 'my weights.pt'  # mine")
        ...     listed_models(path)
        [('timm:resnet18', 'my weights.pt')]

    """
    text = existing_file(path, content="names of models").read_bytes().decode("utf-8", errors="replace")
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            raise DataFileError(f"{path}, line {number} cannot be read ({error}).") from error
        if len(words) > 2:
            raise DataFileError(f"{path}, line {number} must be a model and perhaps its weights, got {line.strip()!r}.")
        found += [(words[0], "".join(words[1:]))] if words else []
    if not found:
        raise EmptyDataError(f"{path} names no model: write one a line, such as timm:resnet18.")
    return found


def protocol_of_models(
    models: Sequence[tuple[str, str]],
    *,
    sets: Mapping[str, Path],
    near: Sequence[str] = (),
    methods: Sequence[str] | None = None,
    validation_samples: int | None = None,
) -> Protocol:
    """Return the protocol of several models on the same data.

    Args:
        models: Names, as ``--model`` takes them, each with its file of weights, or an empty text.
        sets: Paths by name of the set, as `opnp cache` calls them: ``train``, ``test``, ``ood_*`` and perhaps
            ``validation_ood``.
        near: Names of the OOD sets that are near, for every model or as ``model:set`` for one, by its name as it is
            given or as its folder has it.
        methods: As for `run_bench`.
        validation_samples: As for `run_bench`.

    Raises:
        OptionError: If a model occurs twice, or a near set is no OOD set, or of no model.

    Example:
        >>> sets = {"train": Path("train"), "test": Path("test"), "ood_dtd": Path("dtd")}
        >>> models = [("timm:resnet18", ""), ("timm:resnet34", "")]
        >>> [model.near for model in protocol_of_models(models, sets=sets, near=["timm:resnet34:dtd"]).models]
        [(), ('dtd',)]

    """
    paths = {name: str(path) for name, path in sets.items()}
    ood = {name.removeprefix("ood_"): path for name, path in paths.items() if name.startswith("ood_")}
    sides = [(each, *each.rpartition(":")[::2]) for each in near]
    known = {"", *(name for model, _ in models for name in (model, folder_name(model)))}
    if unknown := [each for each, of, name in sides if of not in known or name not in ood]:
        raise OptionError(
            f"`near` must name OOD sets that are there, or MODEL:SET, got {', '.join(unknown)}. There are: "
            f"{', '.join(sorted(ood))}; models: {', '.join(dict.fromkeys(model for model, _ in models))}."
        )

    def with_data(model: str, weights: str) -> ProtocolModel:
        name = folder_name(model)
        return ProtocolModel(
            name=name,
            model=model,
            weights=weights,
            train=paths["train"],
            test=paths["test"],
            ood=ood,
            near=tuple(each for _, of, each in sides if of in ("", model, name)),
            validation_ood=paths.get("validation_ood", ""),
        )

    return Protocol(
        title=f"{len(models)} models on the same data",
        models=tuple(with_data(*each) for each in models),
        methods=None if methods is None else tuple(methods),
        validation_samples=validation_samples,
    )


@dataclass(frozen=True, eq=False, slots=True)
class SpreadInputs:
    """Some samples of a source, in its order; satisfies `opnp.data.InputSource`.

    Attributes:
        whole: The source.
        rows: Which samples of it.

    """

    whole: InputSource
    rows: Sequence[int]

    @property
    def path(self) -> Path:
        """Where the source is."""
        return self.whole.path

    @property
    def kind(self) -> SampleKind:
        """What the samples are."""
        return self.whole.kind

    @property
    def names(self) -> Sequence[str]:
        """What each is called in the source."""
        return [self.whole.names[row] for row in self.rows]

    @property
    def labels(self) -> Sequence[int] | None:
        """Their classes, or None."""
        labels = self.whole.labels
        return None if labels is None else [labels[row] for row in self.rows]

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, as the source has them."""
        return self.whole.class_names

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.rows)

    def sample(self, index: int) -> object:
        """Return one."""
        return self.whole.sample(self.rows[index])

    def digest(self) -> str:
        """Return the SHA-256 of the source and of the rows that are taken of it."""
        return sha256(f"{self.whole.digest()} {list(self.rows)}".encode()).hexdigest()


def spread_inputs(inputs: InputSet, most: int | None) -> InputSet:
    """Return so many inputs at most, evenly spread over a set; None for all."""
    if most is None or len(inputs) <= most:
        return inputs
    rows = [place * len(inputs) // most for place in range(most)]
    return InputSet(SpreadInputs(inputs.source, rows), inputs.transform, is_strict=inputs.is_strict)


@dataclass(frozen=True, slots=True)
class MissingPlace:
    """A path that a protocol needs and that is not there.

    Attributes:
        path: Where it must be put.
        content: What it must hold, and where to get it.

    """

    path: Path
    content: str


def missing_places(protocol: Protocol, root: str | os.PathLike[str]) -> list[MissingPlace]:
    """Return what a protocol needs below a folder and does not find there."""
    places = ((Path(root) / path, content) for path, content in protocol.places())
    return [MissingPlace(path, content) for path, content in places if not path.exists()]


def require_places(protocol: Protocol, root: str | os.PathLike[str]) -> None:
    """Raise unless everything that a protocol needs is there.

    Raises:
        MissingFileError: If not; the message says what to put where.

    """
    if missing := missing_places(protocol, root):
        lines = "".join(f"\n  {each.path}: {each.content}" for each in missing)
        raise MissingFileError(f"{protocol.title}: {len(missing)} of what it needs are not there:{lines}")


def require_protocol(protocol: Protocol, out: str | os.PathLike[str]) -> None:
    """Raise what would keep a model from being judged and is known before any is opened.

    Args:
        protocol: The protocol.
        out: Folder of the results; it need not exist.

    Raises:
        DataFileError: If the folder of a model holds one of the names to write and no record of opnp.
        OptionError: If a method, a curve, or the name of a set is none.
        MissingExtraError: If a package that a chosen method needs is not installed.

    """
    chosen_curves(protocol.curves or None)
    for model in protocol.models:
        require_set_names(model.sets)
        require_bench(Path(out) / model.name, protocol.methods)


def require_protocol_folder(out: str | os.PathLike[str]) -> Path:
    """Return the folder that results of several models are written into, which need not exist.

    Raises:
        DataFileError: If it holds results of its own, or is a file, or holds others' files of these names.

    """
    folder = Path(out)
    own = next((name for name in RECORD_FILES if (folder / name).exists()), None)
    if own is not None:
        raise DataFileError(
            f"{folder} holds {own}, results of a run of its own: name another folder for those of several models."
        )
    if not any(folder.glob("*/results.json")):
        require_own_results(folder, files=_SUMMARY)
    return folder


def write_summary(out: str | os.PathLike[str], records: Sequence[BenchRecord]) -> BenchRecord:
    """Write the tables of several models as one Markdown file and as OpenOOD's CSV; return the records as one.

    Args:
        out: The folder; it exists.
        records: Records, one a model.

    """
    record = BenchRecord.joined(records)
    write_atomically(Path(out) / "results.md", results_markdown(record).encode())
    write_atomically(Path(out) / "leaderboard.csv", leaderboard_csv(record).encode())
    return record

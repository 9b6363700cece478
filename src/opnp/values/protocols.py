"""Protocols of a benchmark: which models on which data, with which methods and curves. A protocol is a JSON file."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from msgspec import Meta

from opnp.errors import OptionError
from opnp.values.bench import PublishedFigures
from opnp.values.reading import Record, Value

__all__ = ["Protocol", "ProtocolModel"]

_NAME = re.compile(r"\w[\w.+-]*")
_TAKEN = ("features",)
"""Folders among the results of models that hold something else."""


class ProtocolModel(Value, frozen=True, kw_only=True, omit_defaults=True):
    """A model and its data. Paths lie below the data root, unless they are absolute.

    Attributes:
        name: What the model is called: in tables, and as the folder of its results.
        model: The model, as ``--model`` takes it.
        train: Training inputs.
        test: Held-out ID inputs.
        ood: OOD inputs by name of the set.
        near: Names of the OOD sets that are near; the others are far.
        validation_ood: OOD inputs to tune ratios by, no part of any other set; empty for none.
        weights: File of the model's weights; empty for those that the model comes with.
        image_size: As ``--image-size``; None for the model's own.
        resize: As ``--resize``.
        mean: As ``--mean``; empty for the model's own.
        std: As ``--std``; one value for each of `mean`.
        most: How many inputs of a set are taken at most, evenly spread over it, by name of the set: ``train``,
            ``test``, ``ood_*`` or ``validation_ood``; all of a set that is not named.
        published: Figures that others published of this model on these sets.

    """

    name: str
    model: str
    train: str
    test: str
    ood: Mapping[str, str]
    near: tuple[str, ...] = ()
    validation_ood: str = ""
    weights: str = ""
    image_size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    most: Mapping[str, Annotated[int, Meta(ge=1)]] = {}
    published: tuple[PublishedFigures, ...] = ()

    @property
    def sets(self) -> dict[str, str]:
        """Paths of its inputs by name of the set, as `opnp cache` calls them."""
        tuning = {"validation_ood": self.validation_ood} if self.validation_ood else {}
        return {
            "train": self.train,
            "test": self.test,
            **{f"ood_{name}": path for name, path in self.ood.items()},
            **tuning,
        }

    @property
    def paths(self) -> dict[str, str]:
        """Paths of all that it needs: ``weights`` if they are in a file, then its sets."""
        return {**({"weights": self.weights} if self.weights else {}), **self.sets}


class Protocol(Record, frozen=True, kw_only=True):
    """Models that one command judges, each on its data.

    Attributes:
        title: What is measured.
        models: The models.
        remark: What whoever reads the results must know of them; it stands above every table.
        methods: As ``--methods``; None for all.
        curves: Curves of a sweep to run beside them, as `opnp sweep` takes them; none for no sweep.
        validation_samples: ID test samples set aside for validation; None for 30 %, at most 2000.
        sources: What each path below the data root holds, and where to get it, by path.
        notes: What is known, and what is not, of how the figures to be reproduced were made.

    Raises:
        OptionError: If there is no model, two have one name, a name cannot be a folder's, a model has no OOD set, or a
            near one is none of them; if `mean` and `std` differ in length, or `validation_samples` is below 1.

    Example:
        >>> net = ProtocolModel(name="net", model="timm:resnet18", train="train", test="val", ood={"dtd": "dtd"})
        >>> protocol = Protocol(title="One model", models=(net,))
        >>> Protocol.from_json(protocol.to_json()) == protocol, net.sets
        (True, {'train': 'train', 'test': 'val', 'ood_dtd': 'dtd'})

    """

    record_version: ClassVar[int] = 1
    subject: ClassVar[str] = "a protocol"

    title: str
    models: tuple[ProtocolModel, ...]
    remark: str = ""
    methods: tuple[str, ...] | None = None
    curves: tuple[str, ...] = ()
    validation_samples: int | None = None
    sources: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the models."""
        names = [model.name for model in self.models]
        if not names:
            raise OptionError("`models` of a protocol must hold at least one model, got none.")
        for model in self.models:
            if not _NAME.fullmatch(model.name) or model.name in _TAKEN:
                raise OptionError(
                    f"`name` of a model must be letters, digits and ._+-, and not {_TAKEN[0]!r}, got {model.name!r}: "
                    f"results lie in a folder of this name."
                )
            if names.count(model.name) > 1:
                raise OptionError(f"Models of one protocol must have different names, got {model.name!r} twice.")
            if not model.ood:
                raise OptionError(f"`ood` of {model.name} must name at least one OOD set, got none.")
            if unknown := [name for name in model.most if name not in model.sets]:
                raise OptionError(f"`most` of {model.name} must name sets of it, got {', '.join(unknown)}.")
            if wrong := [name for name in model.near if name not in model.ood]:
                raise OptionError(f"`near` of {model.name} must name OOD sets of it, got {', '.join(wrong)}.")
            if len(model.mean) != len(model.std):
                raise OptionError(
                    f"`mean` and `std` of {model.name} must have as many values as each other, got {len(model.mean)} "
                    f"and {len(model.std)}: give both, or none for the model's own."
                )
        if self.validation_samples is not None and self.validation_samples < 1:
            raise OptionError(f"`validation_samples` must be at least 1, got {self.validation_samples}.")

    def places(self) -> Iterator[tuple[str, str]]:
        """Yield each path that the protocol needs, once, with what it is to hold."""
        seen: set[str] = set()
        for model in self.models:
            for role, path in model.paths.items():
                if path not in seen:
                    seen.add(path)
                    yield path, self.sources.get(path) or f"{role} of {model.name}"

"""The rows of a benchmark: opnp at fixed ratios and as it is used, and baselines at published settings.

The published settings are a frozen table, chosen with no look at any OOD data. pytorch-ood computes the baselines,
alone and on opnp's pruned head; ODIN's scores need the model and its images, and are read from beside the features.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from torch import Tensor

from opnp.adapters import ODIN_EPS, ODIN_TEMPERATURE, PytorchOodBaseline
from opnp.bench.features import IdSplit, ModelData
from opnp.bench.figures import head_logits
from opnp.bench.odin import OdinScores
from opnp.core import PANEL, NeuronReading, ScoreName
from opnp.detector import OPNP, Ratios
from opnp.detector.tuning import Part as TunedPart
from opnp.errors import DataFileError, OptionError
from opnp.values.bench import PRODUCT, TUNED, Group, MethodRow, Split

__all__ = [
    "PRUNED_RATIOS",
    "FittedMethod",
    "Method",
    "Part",
    "PublishedSetting",
    "available_methods",
    "chosen_methods",
    "includes_odin",
    "member_label",
    "published_settings",
    "ratios_label",
]

PRUNED_RATIOS = Ratios(w_min=0.3)
"""The ratios of the pruned head that the baselines are combined with."""

_PAPER = "Chen et al., NeurIPS 2023; the ratios are fixed, tuned to nothing"
_REFERENCE: tuple[tuple[str, Ratios, NeuronReading, ScoreName], ...] = (
    ("MSP", Ratios(), "gradient", "msp"),
    ("Energy", Ratios(), "gradient", "energy"),
    ("OPP", Ratios(w_min=0.8), "gradient", "energy"),
    ("OPP", Ratios(w_max=0.005), "gradient", "energy"),
    ("ONP", Ratios(o_min=0.5), "gradient", "energy"),
    ("ONP", Ratios(o_min=0.5), "aggregate", "energy"),
    ("ONP", Ratios(o_max=0.05), "aggregate", "energy"),
    ("OPNP-fixed", Ratios(w_min=0.7, w_max=0.001, o_min=0.3, o_max=0.003), "gradient", "energy"),
)


_COMBINED = ("MSP", "MaxLogit", "Energy", "Entropy", "GEN", "ReAct", "ASH-S", "SCALE")
"""The baselines that read logits or shape features, so that opnp's head can stand after the features."""

_TUNED: tuple[tuple[str, NeuronReading, tuple[TunedPart, ...]], ...] = (
    ("OPP tuned", "gradient", ("weights",)),
    ("ONP gradient tuned", "gradient", ("neurons",)),
    ("ONP aggregate tuned", "aggregate", ("neurons",)),
    (TUNED[0], "gradient", ("weights", "neurons")),
    (TUNED[1], "aggregate", ("weights", "neurons")),
)
"""Rows at ratios that OOD validation data choose, as the paper's are: reading of the neurons, and what is removed."""

_ON_TUNED = ("MSP", "GEN", "ReAct", "DICE", "ASH-S", "SCALE")
"""The baselines that the paper joins with its method: they are run on the head that tuning leaves."""

_ALSO_OURS = ("MSP", "Energy")
"""Rows of these names are computed by opnp itself; pytorch-ood's carry its name."""

_GROUP_NAMES = {
    "reference": "reference",
    "baselines": "baseline",
    "combinations": "combination",
    "tuned": "tuned",
    "product": "product",
}
"""Names of the groups as they are asked for, and as they stand in a record."""

_COMPANION = "Energy-rest"


_MANY = 1000
"""From this number of classes on, the settings published for ImageNet hold."""

_WIDE = 512
"""From this number of features on, ViM has its larger subspace."""


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """Some rows of a set that are to be scored.

    Attributes:
        name: Name of the set: ``test`` or ``ood_*``.
        rows: Which rows of it, shape ``(samples,)``, int64.
        features: Their features, shape ``(samples, features)``.

    """

    name: str
    rows: Tensor
    features: Tensor


@dataclass(frozen=True, eq=False, slots=True)
class FittedMethod:
    """A method after its fit.

    Attributes:
        chosen: Hyper-parameters as JSON values.
        output: Returns the scores of some rows, larger = more OOD, and the logits they were read off, or None.
        detector: The detector, of rows that opnp computes.

    """

    chosen: Mapping[str, object]
    output: Callable[[Part], tuple[Tensor, Tensor | None]]
    detector: OPNP | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Method:
    """A row to be.

    Attributes:
        name: Name of the row.
        family: What `--methods` calls it; several rows may share one.
        group: Group of the row.
        source: Package that computes it.
        citation: Where the settings come from.
        settings: Hyper-parameters as asked for.
        split: ID samples to judge it by.
        fit: Makes it ready, from training data and, for `OPNP()` and tuned rows, the samples set aside for validation.
        is_stored: Whether the scores were computed beforehand, so that there is no time to measure.
        is_offered: Whether the row is there without being asked for by name.

    """

    name: str
    family: str
    group: Group
    source: str
    citation: str
    settings: Mapping[str, object]
    split: Split
    fit: Callable[[ModelData, IdSplit], FittedMethod]
    is_stored: bool = False
    is_offered: bool = True

    @property
    def planned(self) -> MethodRow:
        """The row before it has run."""
        return MethodRow(
            status="failed",
            method=self.name,
            group=self.group,
            source=self.source,
            citation=self.citation,
            settings=dict(self.settings),
            split=self.split,
        )


@dataclass(frozen=True, slots=True)
class PublishedSetting:
    """A baseline at one setting.

    Attributes:
        method: One of `opnp.adapters.BASELINE_NAMES`.
        settings: Settings by the names that pytorch-ood gives them.
        citation: Where they come from.

    """

    method: str
    settings: Mapping[str, float]
    citation: str

    @property
    def label(self) -> str:
        """Method and settings in one line.

        Example:
            >>> PublishedSetting("DICE", {"p": 0.9}, "").label
            'DICE p=0.9'

        """
        return " ".join([self.method, *(f"{name}={value:g}" for name, value in self.settings.items())])


_FIXED = (
    PublishedSetting("MSP", {}, "Hendrycks and Gimpel, ICLR 2017"),
    PublishedSetting("MaxLogit", {}, "Hendrycks et al., ICML 2022"),
    PublishedSetting("Energy", {}, "Liu et al., NeurIPS 2020: temperature 1"),
    PublishedSetting("Entropy", {}, "Chan et al., ICCV 2021"),
    PublishedSetting("GEN", {"gamma": 0.1, "M": 100}, "Liu et al., CVPR 2023: ImageNet"),
    PublishedSetting("KL-Matching", {}, "Hendrycks et al., ICML 2022; here from training samples"),
    PublishedSetting("ReAct", {"percentile": 0.9}, "Sun, Guo and Li, NeurIPS 2021: the 90th percentile"),
    PublishedSetting("ReAct", {"percentile": 0.95}, "a value of OpenOOD's search space"),
    PublishedSetting("ReAct", {"percentile": 0.99}, "a value of OpenOOD's search space"),
    PublishedSetting("ASH-S", {"percentile": 0.65}, "the default of pytorch-ood and of the authors' functions"),
    PublishedSetting("ASH-S", {"percentile": 0.9}, "Djurisic et al., ICLR 2023: ImageNet, ResNet-50"),
    PublishedSetting("ASH-S", {"percentile": 0.95}, "Djurisic et al., ICLR 2023: CIFAR-10 and CIFAR-100, DenseNet"),
    PublishedSetting("SCALE", {"percentile": 0.65}, "the default of pytorch-ood"),
    PublishedSetting("SCALE", {"percentile": 0.85}, "Xu et al., ICLR 2024"),
    PublishedSetting("SCALE", {"percentile": 0.9}, "a value of OpenOOD's search space"),
    PublishedSetting("SCALE", {"percentile": 0.95}, "a value of OpenOOD's search space"),
    PublishedSetting("Mahalanobis", {}, "Lee et al., NeurIPS 2018: last layer, no input preprocessing"),
    PublishedSetting("RMD", {}, "Ren et al., arXiv 2106.09022, 2021"),
    PublishedSetting("fDBD", {}, "Liu and Qin, ICML 2024"),
    PublishedSetting("NCI", {"alpha": 0.0}, "Liu and Qin, CVPR 2025: without the norm, whose weight they tune"),
    PublishedSetting("NNGuide", {"k": 10}, "Park, Jung and Teoh, ICCV 2023; here the bank is all of train"),
    PublishedSetting("SHE", {}, "Zhang et al., ICLR 2023: inner product"),
)
_DICE_CIFAR = PublishedSetting("DICE", {"p": 0.9}, "Sun and Li, ECCV 2022: CIFAR")
_DICE_IMAGENET = PublishedSetting("DICE", {"p": 0.7}, "Sun and Li, ECCV 2022: ImageNet")


def published_settings(*, classes: int, features: int, samples: int) -> tuple[PublishedSetting, ...]:
    """Return the baselines for a model, in the order of the tables.

    What the papers set by data set is set by size here: DICE at 0.9, and from 1000 classes on at 0.7 beside it; KNN at
    50 for up to 10 classes, 200 for up to 999 and 1000 from there, but no more than 1 % of the training samples, as its
    paper does on parts of ImageNet; ViM with a subspace of 100 for fewer than 512 features and 256 from there, but no
    more than half of them.

    Args:
        classes: Classes of the model.
        features: Width of its last layer.
        samples: Training samples there are.

    Returns:
        The settings.

    Example:
        >>> chosen = {each.method: each.label for each in published_settings(classes=1000, features=1280, samples=1000)}
        >>> chosen["KNN"], chosen["ViM"]
        ('KNN k=10', 'ViM d=256')

    """
    neighbours = 1000 if classes >= _MANY else 200 if classes > 10 else 50
    dimensions = 256 if features >= _WIDE else 100
    return (
        *_FIXED,
        *((_DICE_CIFAR, _DICE_IMAGENET) if classes >= _MANY else (_DICE_CIFAR,)),
        PublishedSetting(
            "KNN",
            {"k": max(1, min(neighbours, samples // 100))},
            "Sun et al., ICML 2022: 50, 200, 1000 for CIFAR-10, CIFAR-100, ImageNet; at most 1 % of the samples",
        ),
        PublishedSetting(
            "ViM",
            {"d": max(1, min(dimensions, features // 2))},
            "Wang et al., CVPR 2022: 1000 of 2048, 512 of fewer; here scaled down to the width of the head",
        ),
    )


def ratios_label(ratios: Ratios, *, neuron: NeuronReading = "gradient") -> str:
    """Return the paper's name for what the ratios prune, with the ratios.

    Example:
        >>> ratios_label(Ratios(w_min=0.8)), ratios_label(Ratios(o_max=0.05), neuron="aggregate")
        ('OPP rho_w_min=0.8', 'ONP aggregate rho_o_max=0.05')
        >>> ratios_label(Ratios(w_min=0.7, w_max=0.001, o_min=0.3, o_max=0.003))
        'OPNP gradient 0.7/0.001/0.3/0.003'

    """
    values = asdict(ratios)
    shares = [f"rho_{name}={value:g}" for name, value in values.items() if value > 0]
    if ratios.o_min == 0 and ratios.o_max == 0:
        return " ".join(["OPP", *shares]) if shares else "no pruning"
    if ratios.w_min == 0 and ratios.w_max == 0:
        return " ".join(["ONP", neuron, *shares])
    return f"OPNP {neuron} " + "/".join(f"{value:g}" for value in values.values())


def member_label(name: str) -> str:
    """Return the name of the row of a member by itself.

    Example:
        >>> member_label("vim")
        'vim alone'

    """
    return f"{name} alone"


def available_methods(
    *,
    classes: int,
    features: int,
    samples: int,
    odin: OdinScores | None = None,
    pruned: Ratios = PRUNED_RATIOS,
    is_tunable: bool = False,
) -> list[Method]:
    """Return every method there is for a model, in the order of the tables.

    Args:
        classes: Classes of the model.
        features: Width of its last layer.
        samples: Training samples there are.
        odin: ODIN's scores, if they were stored; ODIN is offered where they are, or the reason why there are none.
        pruned: Ratios of the head that baselines are combined with.
        is_tunable: Whether there are OOD validation samples; rows of tuned ratios are offered where there are.

    """
    tuned = _TunedHeads()
    settings = published_settings(classes=classes, features=features, samples=samples)
    reference = list(_REFERENCE)
    if all(pruned != ratios for _, ratios, _, _ in reference):
        family = ratios_label(pruned).split()[0].replace("OPNP", "OPNP-fixed")
        reference.append((family, pruned, "gradient", "energy"))
    return [
        *(_fixed(*row) for row in reference),
        *(_foreign(setting) for setting in settings),
        _odin(odin),
        *(_foreign(setting, pruned) for setting in settings if setting.method in _COMBINED),
        *(_of_tuned(name, tuned, is_offered=is_tunable) for name, *_ in _TUNED),
        *(_foreign(setting, tuned, is_offered=is_tunable) for setting in settings if setting.method in _ON_TUNED),
        _fixed(_COMPANION, Ratios(), "gradient", "energy", group="product", split="rest"),
        _fusion(PRODUCT, "OPNP", members=PANEL),
        *(_fusion(member_label(name), "OPNP-members", members=(name,)) for name in PANEL),
    ]


def chosen_methods(available: Sequence[Method], names: Iterable[str] | None) -> list[Method]:
    """Return the methods that some names choose, in the order of `available`.

    Args:
        available: The methods there are.
        names: Groups or families, in any case and with or without punctuation; None for all. A row that is judged by
            the rest of ``test`` brings along the energy on the same samples; a row that is not offered comes by its
            family's name alone.

    Returns:
        The chosen methods.

    Raises:
        OptionError: If a name is unknown; the message lists the known ones.

    """
    if names is None:
        return [method for method in available if method.is_offered]
    known = {_plain(method.family): method.family for method in available}
    groups = {_plain(name): group for name, group in _GROUP_NAMES.items()}
    wanted = list(names)
    unknown = [name for name in wanted if _plain(name) not in {*known, *groups}]
    if unknown or not wanted:
        families = dict.fromkeys(method.family for method in available)
        got = f"got {', '.join(map(repr, unknown))}" if unknown else "got none"
        raise OptionError(
            f"`methods` must be groups ({', '.join(_GROUP_NAMES)}) or methods ({', '.join(families)}), {got}.",
        )
    chosen_groups = {groups[_plain(name)] for name in wanted if _plain(name) in groups}
    chosen_families = {known[_plain(name)] for name in wanted if _plain(name) in known}
    chosen = [
        each
        for each in available
        if each.family in chosen_families or (each.group in chosen_groups and each.is_offered)
    ]
    if any(method.split == "rest" for method in chosen):
        return [each for each in available if each in chosen or each.family == _COMPANION]
    return chosen


def includes_odin(names: Iterable[str] | None) -> bool:
    """Return whether these names choose the row of ODIN where its scores are there.

    Example:
        >>> includes_odin(None), includes_odin(["baselines"]), includes_odin(["energy", "knn"])
        (True, True, False)

    """
    return names is None or any(_plain(name) in ("odin", "baselines") for name in names)


def _fixed(
    family: str,
    ratios: Ratios,
    neuron: NeuronReading,
    score: ScoreName,
    *,
    group: Group = "reference",
    split: Split = "test",
) -> Method:
    is_pruned = ratios != Ratios()
    name = ratios_label(ratios, neuron=neuron) if is_pruned else "MSP" if score == "msp" else "Energy"

    def fit(model: ModelData, _: IdSplit) -> FittedMethod:
        return _of_detector(_fitted(model, ratios, neuron, score))

    return Method(
        name=name if split == "test" else f"{name}, rest of test",
        family=family,
        group=group,
        source="opnp",
        citation=_PAPER if is_pruned else "the score alone, no pruning",
        settings={"ratios": asdict(ratios), "neuron": neuron, "score": score},
        split=split,
        fit=fit,
    )


def _fusion(name: str, family: str, *, members: tuple[str, ...]) -> Method:
    def fit(model: ModelData, split: IdSplit) -> FittedMethod:
        detector = OPNP(members=members)
        detector.fit_features(model.train.features, weight=model.head.weight, bias=model.head.bias)
        if name == PRODUCT:  # a gallery of it shows its verdicts
            detector.calibrate_features(model.test.features[split.validation])
        return _of_detector(detector)

    return Method(
        name=name,
        family=family,
        group="product",
        source="opnp",
        citation="from training samples alone, without OOD data and without tuning",
        settings={"members": list(members)},
        split="rest",
        fit=fit,
    )


def _of_detector(detector: OPNP) -> FittedMethod:
    """Return a fitted detector without shaping, or a fusion, asked for the logits that it scores as well."""

    def output(part: Part) -> tuple[Tensor, Tensor | None]:
        scores = detector.score_features(part.features).double()
        if detector.settings.is_fusion:  # read off no one head
            return scores, None
        return scores, head_logits(detector.pruned_head, part.features)

    left_out = {"left_out": dict(detector.left_out)} if detector.left_out else {}
    return FittedMethod(detector.settings.to_json() | left_out, output, detector)


def _fitted(model: ModelData, ratios: Ratios, neuron: NeuronReading = "gradient", score: ScoreName = "energy") -> OPNP:
    """Return a detector with these ratios and no shaping, fitted in float64."""
    detector = OPNP(ratios=ratios, neuron=neuron, score=score, precision="float64")
    return detector.fit_features(model.train.features, weight=model.head.weight, bias=model.head.bias)


@dataclass(eq=False, slots=True)
class _TunedHeads:
    """Detectors at tuned ratios, each made once: the rows of the paper's method share them with what is joined to it.

    Attributes:
        made: Detectors by name of the row.
        start: The detector without pruning that they share their sensitivities with.

    """

    made: dict[str, OPNP] = field(default_factory=dict)
    start: OPNP | None = None

    def detector(self, name: str, model: ModelData, split: IdSplit) -> OPNP:
        """Return the detector of a row.

        Raises:
            DataFileError: If there are no OOD validation samples.

        """
        if model.validation_ood is None:
            raise DataFileError(
                f"Tuned ratios need OOD validation samples, and {model.name} has none: give `--val-ood PATH` with "
                f"`--model`, or cache them as validation_ood."
            )
        if name not in self.made:
            self.start = self.start or _fitted(model, Ratios())
            neuron, parts = next((reading, parts) for each, reading, parts in _TUNED if each == name)
            self.made[name] = self.start.with_tuned_ratios(
                model.test.features[split.validation],
                model.validation_ood,
                neuron=neuron,
                scope="layer",
                parts=parts,
            )
        return self.made[name]

    def best(self, model: ModelData, split: IdSplit) -> OPNP:
        """Return the detector of the whole method in the reading that gained more, on validation samples alone."""
        found = [self.detector(name, model, split) for name in TUNED]
        return max(found, key=lambda each: 0.0 if each.tuning is None else each.tuning.auroc)


def _of_tuned(name: str, heads: _TunedHeads, *, is_offered: bool) -> Method:
    def fit(model: ModelData, split: IdSplit) -> FittedMethod:
        detector = heads.detector(name, model, split)
        fitted = _of_detector(detector)
        found = detector.tuning
        tried = {} if found is None else {"tuned": {"tried": found.tried, "gain": found.gain}}
        return replace(fitted, chosen={**fitted.chosen, **tried})

    return Method(
        name=name,
        family="OPNP-tuned",
        group="tuned",
        source="opnp",
        citation="Chen et al., NeurIPS 2023: ratios tuned on OOD validation samples",
        settings={"ratios": "tuned"},
        split="rest",
        fit=fit,
        is_offered=is_offered,
    )


def _foreign(
    setting: PublishedSetting, pruned: Ratios | _TunedHeads | None = None, *, is_offered: bool = True
) -> Method:
    """Return a baseline of pytorch-ood, on the head that these ratios prune, on a tuned one or on the original one."""
    is_tuned = isinstance(pruned, _TunedHeads)
    ratios: object = "tuned" if is_tuned else asdict(pruned) if isinstance(pruned, Ratios) else None
    settings: dict[str, object] = {**setting.settings} | ({} if ratios is None else {"ratios": ratios})

    def fit(model: ModelData, split: IdSplit) -> FittedMethod:
        detector: OPNP | None = None
        chosen = settings
        if isinstance(pruned, _TunedHeads):
            detector = pruned.best(model, split)
            own = detector.settings
            chosen = settings | {"ratios": asdict(own.ratios), "neuron": own.neuron}
        elif pruned is not None:
            detector = _fitted(model, pruned)
        head = model.head if detector is None else detector.pruned_head
        baseline = PytorchOodBaseline(setting.method, weight=head.weight, bias=head.bias, settings=setting.settings)
        baseline.fit(model.train.features, model.train.labels)
        return FittedMethod(chosen, lambda part: baseline.output(part.features))

    name, family = setting.label, setting.method
    if is_tuned:
        name, family = f"{name} + OPNP tuned", f"{family}-tuned"
    elif isinstance(pruned, Ratios):
        name, family = f"{name} + {ratios_label(pruned)}", f"{family}-pruned"
    elif family in _ALSO_OURS:
        name, family = f"{name} (pytorch-ood)", f"{family}-pytorch-ood"
    return Method(
        name=name,
        family=family,
        group="baseline" if pruned is None else "combination",
        source="pytorch-ood",
        citation=setting.citation,
        settings=settings,
        split="rest" if is_tuned else "test",
        fit=fit,
        is_offered=is_offered,
    )


def _odin(odin: OdinScores | None) -> Method:
    settings = {"temperature": ODIN_TEMPERATURE, "eps": ODIN_EPS}
    return Method(
        name=f"ODIN temperature={ODIN_TEMPERATURE:g} eps={ODIN_EPS:g}",
        family="ODIN",
        group="baseline",
        source="pytorch-ood",
        citation="Liang, Li and Srikant, ICLR 2018",
        settings=settings if odin is None else odin.about.settings,
        split="test",
        fit=_stored_odin,
        is_stored=True,
        is_offered=odin is not None,
    )


def _stored_odin(model: ModelData, _: IdSplit) -> FittedMethod:
    odin = model.odin
    if odin is None:
        raise DataFileError(
            "ODIN takes gradients with respect to images, and there are features alone: run the benchmark with "
            "`--model`, or cache the features with `opnp cache`, which computes it.",
        )
    if odin.about.reason:
        raise DataFileError(odin.about.reason)
    names = ["test", *(f"ood_{name}" for name in model.ood)]
    valid = odin.valid_for({name: model.sources[name].sha256 for name in names})
    stale = [name for name in names if name not in valid]
    if stale:
        raise DataFileError(
            f"There are no scores of ODIN that belong to the features of {', '.join(stale)}: cache them again.",
        )
    return FittedMethod(odin.about.settings, lambda part: (valid[part.name][part.rows], None))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())

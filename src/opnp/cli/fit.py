"""``opnp fit`` and ``opnp inspect``: from a model or cached features to a detector on disk, and what a detector is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.cli.options import (
    CalibrateBy,
    DataPath,
    FeaturesFileOrNone,
    HeadOptions,
    JsonFlag,
    ModelNameOrNone,
    RankTimeout,
    RatioOptions,
    RayAddress,
    ReportFile,
    checked_device,
    detector_option,
    given_options,
    head_layer_name,
    input_option,
    require_form,
    require_out_file,
    require_report,
    running_option,
    shaping_from,
    tell_report,
    warn_unless_held_out,
)
from opnp.cli.output import print_result, progress_bar, settings_text
from opnp.errors import OptionError
from opnp.values.settings import RANK_TIMEOUT, CalibratedBy, NeuronReading, Precision, Scope, ScoreName

if TYPE_CHECKING:
    from opnp.cli.running import OpenedModel
    from opnp.data import InputSet
    from opnp.detector import OPNP, Checkpoint
    from opnp.distributed import Ranks

_NAMED = 5
"""Features that are named where people read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _FitOptions(HeadOptions):
    """How a model, or cached features, are run through."""

    batch_size: Annotated[
        int | None,
        running_option(help="Rows that are read and multiplied at once, 8192; with --model, inputs a batch, 64."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _DetectorOptions(RatioOptions):
    """What is fitted."""

    members: Annotated[
        str | None,
        detector_option(
            help="Names of the scores to fuse, separated by commas: gen, energy, react, scale, ash_s, fdbd, nci, "
            "mahalanobis, relative_mahalanobis, vim, opnp, opnp_gen, norm. Default: "
            "gen,react,fdbd,mahalanobis,vim,opnp,norm."
        ),
    ] = None
    neuron: Annotated[
        NeuronReading | None, detector_option(help="Reading of the neuron sensitivity. Default: gradient.")
    ] = None
    scope: Annotated[
        Scope | None, detector_option(help="Rank all weights together, or each class's row by itself. Default: layer.")
    ] = None
    temperature: Annotated[float | None, detector_option(help="Temperature of the energy, above 0. Default: 1.")] = None
    score: Annotated[ScoreName | None, detector_option(help="Score on the pruned head's logits. Default: energy.")] = (
        None
    )
    shaping: Annotated[
        str | None, detector_option(help="Shaping of the features: none, react:0.9, ash-s:0.9 or scale:0.85.")
    ] = None
    precision: Annotated[Precision, detector_option(help="Precision of the products.")] = "float32"

    def detector(self) -> "OPNP":
        """Return the detector, not fitted yet.

        Raises:
            OptionError: If the options do not go together, or one is out of range.

        """
        from opnp.detector import OPNP, Ratios

        is_plain = self.shaping == "none"
        return OPNP(
            members=None if self.members is None else tuple(name.strip() for name in self.members.split(",")),
            ratios=self.over(Ratios()) if self.given_ratios or is_plain else None,
            neuron=self.neuron,
            scope=self.scope,
            temperature=self.temperature,
            score=self.score,
            shaping=None if self.shaping is None else shaping_from(self.shaping),
            precision=self.precision,
        )


def fit(
    *,
    out: Annotated[Path, typer.Option(help="Detector to write, a safetensors file.")],
    features: FeaturesFileOrNone = None,
    head: Annotated[
        Path | None,
        input_option(help="With --features: safetensors file with `weight` (classes, features), and perhaps `bias`."),
    ] = None,
    data: DataPath = None,
    validation: Annotated[
        Path | None, input_option(help="Held-out ID samples to calibrate on: as --features, or as --data.")
    ] = None,
    model: ModelNameOrNone = None,
    keep: Annotated[float, detector_option(help="Share of ID to keep, with --validation.")] = 0.95,
    calibrate_by: CalibrateBy = None,
    kind: _DetectorOptions,
    options: _FitOptions,
    checkpoint: Annotated[
        Path | None,
        running_option(
            help="With --features: file to write down how far the pass is, and to go on from; removed once --out is "
            "written."
        ),
    ] = None,
    checkpoint_every: Annotated[int, running_option(help="Batches between two writings of --checkpoint.")] = 16,
    ray: RayAddress = None,
    rank_timeout: RankTimeout = RANK_TIMEOUT,
    report: ReportFile = None,
    json: JsonFlag = False,
) -> None:
    """Fit a detector by a model and its training data, or by cached features of them, and write it.

    Without options scores of different mechanism are fused. Any --rho option, or --neuron, --scope, --temperature,
    --score or --shaping, asks for the paper's method instead: the energy of the pruned head. `opnp tune` chooses
    ratios. Several processes fit together: `torchrun --nproc-per-node 2 -m opnp fit ...`; so do the workers of a
    cluster, with --ray.
    """
    from opnp.detector import Checkpoint
    from opnp.distributed import launched, together

    require_report(report)
    require_form(
        features=features,
        model=model,
        inputs="`--data PATH`",
        of_features={"--checkpoint": checkpoint},
        of_model={"--data": data, **given_options(options, but=("--batch-size", "--device"))},
    )
    _require_calibration(validation, keep=keep, by=calibrate_by)
    detector = kind.detector()
    position = None if checkpoint is None else Checkpoint(checkpoint, every=checkpoint_every)
    run: Callable[..., dict[str, object]]
    if features is not None:
        if head is None:
            raise OptionError("`--features` need the head they belong to: give `--head FILE`.")
        run = partial(_fit_features, features, head, checkpoint=position, ray=ray)
    elif model is not None and data is not None:
        layer = head_layer_name(options.head_layer, old=head)
        run = partial(_fit_model, model, data, head=layer, logits=options.logits_place, out=out, ray=ray)
    else:
        raise OptionError("`--model` needs the inputs that it was trained on: give `--data PATH`.")
    with launched(device=options.device or "cpu", timeout=rank_timeout) as ranks:
        with together(ranks):
            if ranks.is_first:
                require_out_file(out, checkpoint)
        is_quiet = json or not ranks.is_first
        # The first rank alone needs held-out samples, which may lie on its machine alone.
        known = validation if ranks.is_first else None
        facts = run(detector, ranks, options=options, validation=known, keep=keep, by=calibrate_by, is_quiet=is_quiet)
        with together(ranks):
            if ranks.is_first:
                detector.save(out)
        if position is not None:
            position.remove(ranks)
        if not ranks.is_first:
            return
        print_detector(detector, {"out": str(out)} | facts, json=json)
        if not detector.is_calibrated and not json:
            typer.echo("No --validation: the detector scores, but gives no p-value and no verdict.", err=True)
        if report is not None:
            from opnp.bench import record_fit

            with TemporaryDirectory() as folder:
                record_fit(
                    detector, folder, model=model or str(features), settings_text=settings_text(detector.settings)
                )
                tell_report(Path(folder), report, is_quiet=json)


def _require_calibration(validation: Path | None, *, keep: float, by: CalibratedBy | None) -> None:
    """Raise if the share to keep is none, or groups are asked for and there are no samples to make them of."""
    from opnp.core.conformal import minimum_samples

    minimum_samples(keep=keep)
    if by is not None and validation is None:
        raise OptionError("`--calibrate-by` groups held-out samples: give them with `--validation`.")


def _fit_features(
    features: Path,
    head: Path,
    detector: "OPNP",
    ranks: "Ranks",
    *,
    options: HeadOptions,
    validation: Path | None,
    checkpoint: "Checkpoint | None",
    ray: str | None,
    keep: float,
    by: CalibratedBy | None,
    is_quiet: bool,
) -> dict[str, object]:
    """Fit a detector on cached features with all ranks, and return facts of this form alone: none."""
    if ray is not None:
        from opnp.cli.cluster import fit_features

        if checkpoint is not None:
            raise OptionError("`--checkpoint` cannot go with `--ray`, which runs tasks again by itself: leave one out.")
        unused = ", ".join(given_options(options))
        if unused:
            raise OptionError(
                f"{unused} cannot go with `--ray` and `--features`: tasks add up on CPUs in blocks of one size. Leave "
                f"it out."
            )
        fit_features(ray, features, head, detector, validation=validation, keep=keep, by=by, is_quiet=is_quiet)
        return {}
    from opnp.core.conformal import flagged_rank
    from opnp.data import feature_part, open_features, read_head
    from opnp.detector.fit_pass import BATCH_ROWS
    from opnp.distributed import local_device, require_equal, together

    with together(ranks):
        warn_unless_held_out(validation, training=features)
        training, classifier = open_features(features), read_head(head)
        place = local_device(checked_device(options.device) or "cpu")
        held_out = None if validation is None else open_features(validation, feature_names=training.feature_names)
        if held_out is not None:
            flagged_rank(held_out.rows, keep=keep)  # raises if these are too few, before the pass
    require_equal(f"({training.rows}, {training.width})", ranks, what="features of shape")
    detector.fit_features(
        feature_part(training, *ranks.part(training.rows)),
        weight=classifier.weight.to(place),
        bias=None if classifier.bias is None else classifier.bias.to(place),
        validation=held_out,
        keep=keep,
        by=by,
        batch_size=BATCH_ROWS if options.batch_size is None else options.batch_size,
        checkpoint=checkpoint,
        distributed=not ranks.is_alone,
        progress=progress_bar("fitting", is_quiet=is_quiet),
    )
    return {}


def _fit_model(
    model: str,
    data: Path,
    detector: "OPNP",
    ranks: "Ranks",
    *,
    options: HeadOptions,
    validation: Path | None,
    head: str | None,
    logits: int | str | None,
    out: Path,
    ray: str | None,
    keep: float,
    by: CalibratedBy | None,
    is_quiet: bool,
) -> dict[str, object]:
    """Fit a detector by a model with all ranks, and return how many inputs of each set could not be read."""
    from opnp.cli.running import OpenedModel, model_errors, unreadable_of_all, with_known_order
    from opnp.core.conformal import flagged_rank
    from opnp.distributed import Ranks, require_equal, together

    if ray is not None:
        from opnp.cli.cluster import fit_model

        opened, training, found = fit_model(
            ray,
            model,
            data,
            detector,
            options=options,
            validation=validation,
            head=head,
            keep=keep,
            by=by,
            is_quiet=is_quiet,
        )
        _remember(detector, opened, training, name=model, options=options, out=out)
        return {"unreadable": found}
    with together(ranks):
        warn_unless_held_out(validation, training=data)
        opened = OpenedModel.of(model, options)
        ordered = partial(with_known_order, opened=opened, head=head, logits=logits)
        training = ordered(opened.inputs(data))
        held_out = None if validation is None else ordered(opened.inputs(validation))
        if held_out is not None:
            flagged_rank(len(held_out), keep=keep)  # raises if these are too few, before the model is run
    require_equal(str(len(training)), ranks, what="inputs in number")
    with model_errors(opened.model, data):
        detector.fit(
            opened.model,
            opened.batches(training, rows=range(*ranks.part(len(training)))),
            head=head,
            logits=logits,
            validation=None if held_out is None else opened.batches(held_out),
            keep=keep,
            by=by,
            device=opened.device,
            auto_batch=options.auto_batch,
            distributed=not ranks.is_alone,
            progress=progress_bar("fitting", is_quiet=is_quiet),
        )
    _remember(detector, opened, training, name=model, options=options, out=out)
    counts = {"data": unreadable_of_all(training, ranks)}
    if held_out is not None:
        counts["validation"] = unreadable_of_all(held_out, Ranks())
    return {"unreadable": counts}


def _remember(
    detector: "OPNP", opened: "OpenedModel", training: "InputSet", *, name: str, options: HeadOptions, out: Path
) -> None:
    """Keep in a detector, and in its file, which model it belongs to."""
    from opnp.adapters import model_origin

    detector.remember(
        model_origin(
            *(opened.model, opened.transform),
            name=name,
            weights=options.weights_file,
            detector=out,
            classes=len(detector.sensitivity.weight),
            class_names=training.source.class_names,
        )
    )


def inspect(
    detector: Annotated[Path, typer.Argument(help="Detector that `opnp fit` wrote.")],
    json: JsonFlag = False,
) -> None:
    """Print what a detector holds: settings, what it pruned, its sensitivities and its calibration."""
    from opnp.detector import OPNP

    loaded = OPNP.load(detector)
    values = {
        "weight": loaded.sensitivity.weight,
        "neuron_gradient": loaded.sensitivity.neuron_gradient,
        "neuron_aggregate": loaded.sensitivity.neuron_aggregate,
    }
    statistics = {
        f"{name}_sensitivity_{kind}": float(value)
        for name, each in values.items()
        for kind, value in {"mean": each.mean(), "max": each.max()}.items()
    }
    print_detector(loaded, statistics, json=json)


def print_detector(detector: "OPNP", more: Mapping[str, object], *, json: bool) -> None:
    """Print what there is to say of a fitted detector, and more, as JSON or as text for people."""
    texts = {"settings": settings_text(detector.settings)}
    if detector.settings.is_fusion:
        texts["members"] = ", ".join(detector.members)
        texts["left_out"] = "; ".join(f"{name}: {reason}" for name, reason in detector.left_out.items()) or "none"
    if (tuning := detector.tuning) is not None:
        texts["tuned"] = (
            f"{tuning.tried} settings tried; on samples not searched AUROC {100 * tuning.auroc:.2f}, plain energy "
            f"{100 * tuning.energy_auroc:.2f}, gain {100 * tuning.gain:+.2f}"
        )
    if detector.id_accuracy:
        texts["id_accuracy"] = ", ".join(f"{name} {100 * share:.2f} %" for name, share in detector.id_accuracy.items())
    if (names := detector.feature_names) is not None:
        texts["feature_names"] = ", ".join(names if len(names) <= _NAMED else (*names[:_NAMED], "..."))
    if detector.is_calibrated and detector.calibrated_by:
        texts |= {"calibrated_by": "predicted class", "calibration_groups": _groups_text(detector)}
    if isinstance(counts := more.get("unreadable"), dict):
        texts["unreadable"] = ", ".join(f"{count} of {name}" for name, count in counts.items())
    print_result({**_summary(detector), **more}, json=json, texts=texts)


def _summary(detector: "OPNP") -> dict[str, object]:
    """Return what there is to say of a fitted detector, as JSON values; a threshold that nothing exceeds is "inf"."""
    classes, features = detector.masks.weight.shape
    facts: dict[str, object] = {
        "training_samples": detector.samples,
        "classes": classes,
        "features": features,
        "settings": detector.settings.to_json(),
        "pruned_weights": int((~detector.masks.weight).sum()),
        "pruned_neurons": int((~detector.masks.neuron).sum()),
        "kept_share": float(detector.masks.kept.double().mean()),
        "calibration_samples": 0,
    }
    if detector.feature_names is not None:
        facts["feature_names"] = list(detector.feature_names)
    if (origin := detector.origin) is not None:
        facts |= {"model": origin.model, "weights": origin.weights}
    if detector.settings.is_fusion:
        facts |= {"members": list(detector.members), "left_out": dict(detector.left_out)}
    if detector.id_accuracy:
        facts["id_accuracy"] = detector.id_accuracy
    if detector.tuning is not None:
        facts["tuned"] = detector.tuning.to_json() | {"gain": detector.tuning.gain}
    if detector.is_calibrated:
        groups = detector.calibration_groups
        facts |= {"calibration_samples": len(detector.calibration_scores), "keep": detector.keep}
        if detector.calibrated_by is None:
            facts["threshold"] = _number(groups[0].threshold)
        else:
            facts["calibrated_by"] = detector.calibrated_by
            facts["calibration_groups"] = [
                {
                    "name": group.name,
                    "classes": list(group.classes),
                    "samples": group.samples,
                    "threshold": _number(group.threshold),
                }
                for group in groups
            ]
    return facts


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _groups_text(detector: "OPNP") -> str:
    """Return which classes have calibration samples of their own, and which are pooled."""
    groups = detector.calibration_groups
    alone = [group for group in groups if not group.name.startswith("pooled")]
    samples = [group.samples for group in alone]
    texts = [f"{len(alone)} classes by themselves, of {min(samples)} to {max(samples)} samples"] if alone else []
    texts += [
        f"{group.name}, {group.samples} samples for the classes {', '.join(map(str, group.classes))}"
        for group in groups
        if group not in alone
    ]
    return "; ".join(texts)

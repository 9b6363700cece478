"""The inputs of ``opnp bench --model``: their features are computed once, and kept in the folder of the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

from opnp.adapters import folder_name
from opnp.bench import Forward, cache_features, includes_odin, require_bench
from opnp.cli.cache import tell_unreadable
from opnp.cli.model_options import FeaturesDtype, ModelOptions, checked_device
from opnp.cli.output import progress_bar
from opnp.data import InputSet, open_inputs, train_and_test
from opnp.errors import OptionError

__all__ = ["cached_for_bench"]


def cached_for_bench(
    options: ModelOptions,
    *,
    inside: Path | None,
    train: Path | None,
    outside: Mapping[str, Path],
    out: Path,
    methods: Sequence[str] | None,
    validation_samples: int | None,
    head: str | None,
    logits: int | str | None,
    device: str | None,
    batch_size: int,
    dtype: FeaturesDtype,
    workers: int,
    forward: Forward,
    is_strict: bool,
    auto_batch: bool,
    is_quiet: bool,
) -> tuple[Path, dict[str, InputSet]]:
    """Return the folder of a model's features, after computing what of them is not there yet, and its inputs.

    Args:
        options: The model.
        inside: ID test inputs, images or texts, or a folder with those for training and test.
        train: Training inputs, or None where they are in `inside`.
        outside: OOD inputs by name.
        out: Folder of folders of features; those of another model of this name are replaced.
        methods: What the benchmark will run: ODIN is computed if it is among them.
        validation_samples: As for `run_bench`.
        head: Dotted name of the head, or None.
        logits: Where the logits are in the model's output, or None.
        device: Where to run, or None.
        batch_size: Inputs a batch.
        dtype: Type to store features in.
        workers: Processes that read and prepare inputs; 0 to do so here.
        forward: How the model is run.
        auto_batch: Whether a batch that needs more memory than there is is run in halves.
        is_strict: Whether an input that cannot be read is an error; else it is left out.
        is_quiet: Whether to show nothing.

    Raises:
        OpnpError: If the inputs are not there, or anything that the benchmark needs is missing or wrong.

    """
    if inside is None or not outside:
        missing = "`--id PATH`" if inside is None else "`--ood NAME=PATH`"
        raise OptionError(f"`--model` needs inputs to judge by: give {missing}.")
    if train is None:
        if not inside.is_dir():
            raise OptionError(
                f"`--id` {inside} holds test inputs alone: give the training inputs with `--train PATH`, or an `--id` "
                f"folder with train and test (or val) in it.",
            )
        train, inside = train_and_test(inside)
    model, transform = options.opened()
    paths = {"train": train, "test": inside, **{f"ood_{name}": path for name, path in outside.items()}}
    sets = {
        name: open_inputs(path, transform, is_strict=is_strict, is_labelled=not name.startswith("ood_"))
        for name, path in paths.items()
    }
    require_bench(out.parent, methods, test_samples=len(sets["test"]), validation_samples=validation_samples)
    folder = out / folder_name(options.name)
    report = cache_features(
        model,
        sets,
        folder,
        name=options.name,
        weights=options.weights,
        head=head,
        logits=logits,
        device=checked_device(device),
        batch_size=batch_size,
        dtype=dtype.torch_dtype,
        is_odin_wanted=includes_odin(methods),
        is_replacing=True,
        workers=workers,
        amp=forward.amp,
        is_channels_last=forward.is_channels_last,
        auto_batch=auto_batch,
        progress=progress_bar("caching", is_quiet=is_quiet),
    )
    tell_unreadable({name: report.source.sets[name] for name in sets})
    if not is_quiet:
        states = {"computed": report.computed, "kept": report.kept}
        text = "; ".join(f"{', '.join(names)} {state}" for state, names in states.items() if names)
        typer.echo(f"Features in {folder}: {text}.", err=True)
    for name, inputs in sets.items():  # of features that were kept, their record knows what could not be read
        reasons = dict(report.source.sets[name].unreadable)
        for row, each in enumerate(inputs.names if reasons else ()):
            if each in reasons:
                inputs.skip(row, reasons[each])
    return folder, sets

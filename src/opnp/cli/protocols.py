"""``opnp bench`` over several models: by ``--model`` given several times, by ``--models FILE``, or by a protocol.

Each model has a folder of its own in ``--out``, with the features of all in ``features``. What is there already of the
same data and settings is kept, so that a run that was stopped goes on where it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from json import loads
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import typer

from opnp.cli.bench import features_for_bench
from opnp.cli.options import CacheOptions, tell_report
from opnp.cli.output import print_json, print_table, progress_bar
from opnp.errors import ModelRunError, OpnpError

if TYPE_CHECKING:
    from opnp.detector import Ratios
    from opnp.values.bench import BenchRecord
    from opnp.values.protocols import Protocol, ProtocolModel

_SHOWN = 20
"""Rows on the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolRun:
    """A protocol, and what of a run over its models the protocol does not say.

    Attributes:
        protocol: The protocol.
        root: Folder that its paths lie below.
        out: Folder for features and results.
        options: How models are run.
        pruned: Ratios of the head that baselines are combined with.
        seed: Seed of the split of the ID test samples.
        is_quiet: Whether nothing is said but JSON.
        report: Page to write of all models, or None.

    """

    protocol: "Protocol"
    root: Path
    out: Path
    options: CacheOptions
    pruned: "Ratios"
    seed: int
    is_quiet: bool
    report: Path | None

    def told(self) -> None:
        """Print every model, data set and setting, and what is missing; nothing is run.

        Raises:
            OpnpError: If what the protocol says cannot be run, whatever the data.

        """
        from opnp.bench import missing_places, require_protocol

        require_protocol(self.protocol, self.out)
        protocol, missing = self.protocol, missing_places(self.protocol, self.root)
        if self.is_quiet:
            lacking = {str(each.path): each.content for each in missing}
            print_json({"protocol": loads(protocol.to_json()), "seed": self.seed, "missing": lacking})
            return
        absent = {each.path for each in missing}
        for model in protocol.models:
            rows = [
                [
                    f"{name}, near" if name.removeprefix("ood_") in model.near else name,
                    str(self.root / path),
                    ("missing" if self.root / path in absent else "there")
                    + (f", at most {model.most[name]} of it" if name in model.most else ""),
                ]
                for name, path in model.paths.items()
            ]
            inputs = {"size": model.image_size, "resize": model.resize, "mean": model.mean, "std": model.std}
            rows += [[f"image {name}", str(value), ""] for name, value in inputs.items() if value]
            own = "" if model.weights else ", with the weights that it comes with"
            print_table(f"{model.name}: {model.model}{own}", ["set", "path or value", ""], rows)
        settings = {
            "methods": "all" if protocol.methods is None else ", ".join(protocol.methods),
            "curves": ", ".join(protocol.curves) or "none",
            "validation samples": str(protocol.validation_samples or "30 %, at most 2000"),
            "seed": str(self.seed),
            "features": self.options.dtype,
            "results": str(self.out),
        }
        print_table(protocol.title, ["setting", "value"], [list(item) for item in settings.items()])
        for text in filter(None, (protocol.remark, *protocol.notes)):
            typer.echo(text)
        typer.echo(f"Missing: {len(missing)} of {len(list(protocol.places()))}.")
        for each in missing:
            typer.echo(f"  {each.path}: {each.content}")

    def run(self) -> None:
        """Run every model, write what sums them up, and print it.

        Raises:
            OpnpError: If nothing can be run; or, after all that could be run and was written, if a model failed.

        """
        from opnp.bench import require_places, require_protocol, require_protocol_folder, write_summary

        protocol, failed, records = self.protocol, {}, []
        require_places(protocol, self.root)
        require_protocol(protocol, require_protocol_folder(self.out))
        for number, model in enumerate(protocol.models, 1):
            if not self.is_quiet:
                typer.echo(f"{model.name}, {number} of {len(protocol.models)}:", err=True)
            try:
                records.append(self._record(model))
            except OpnpError as error:  # the others may run through the night all the same
                failed[model.name] = str(error)
                typer.echo(f"{model.name} did not run: {error}", err=True)
        if not records:
            raise ModelRunError(_failures(failed, protocol))
        record = write_summary(self.out, records)
        if self.is_quiet:
            typer.echo(record.to_json())
        else:
            self._print(record)
        judged = [model.name for model in protocol.models if model.name not in failed]
        tell_report(self.out, self.report, is_quiet=self.is_quiet, models=judged)
        if failed:
            raise ModelRunError(f"{_failures(failed, protocol)} The others are in {self.out}.")

    def _record(self, model: "ProtocolModel") -> "BenchRecord":
        """Return the record of one model, kept where it is that of the same features and settings."""
        from opnp.bench import run_bench, run_sweep

        protocol, folder = self.protocol, self.out / model.name
        features, inputs = features_for_bench(
            model.model,
            {name: self.root / path for name, path in model.sets.items()},
            self.out,
            self._options(model),
            name=model.name,
            results=folder,
            most=model.most,
            methods=protocol.methods,
            validation_samples=protocol.validation_samples,
            is_quiet=self.is_quiet,
        )
        record = run_bench(
            features,
            folder,
            methods=protocol.methods,
            seed=self.seed,
            validation_samples=protocol.validation_samples,
            pruned=self.pruned,
            near=model.near,
            ood=model.ood,
            is_tunable=bool(model.validation_ood),
            inputs=inputs,
            published=model.published,
            remark=protocol.remark,
            is_resumed=True,
            progress=progress_bar("benchmarking", is_quiet=self.is_quiet),
        )
        if protocol.curves:
            run_sweep(
                features,
                folder,
                curves=protocol.curves,
                seed=self.seed,
                near=model.near,
                ood=model.ood,
                is_resumed=True,
                progress=progress_bar("sweeping", is_quiet=self.is_quiet),
            )
        return record

    def _options(self, model: "ProtocolModel") -> CacheOptions:
        """Return the options of the command line with those of a model."""
        given = self.options
        return replace(
            given,
            weights=self.root / model.weights if model.weights else given.weights,
            image_size=given.image_size if model.image_size is None else model.image_size,
            resize=given.resize if model.resize is None else model.resize,
            mean=",".join(map(str, model.mean)) or given.mean,
            std=",".join(map(str, model.std)) or given.std,
        )

    def _print(self, record: "BenchRecord") -> None:
        rows = [
            [method, f"{100 * fmean(each.values()):.2f}", f"{100 * max(each.values()):.2f}"]
            for method, each in list(record.regrets.items())[:_SHOWN]
        ]
        print_table(f"Regret over {len(record.models)} models", ["method", "mean", "worst"], rows)
        typer.echo("Regret: the AUROC of the best published single score, chosen with hindsight, less the row's own.")
        typer.echo(
            f"Everything else is in {self.out}: start with results.md. leaderboard.csv has the columns of OpenOOD's. "
            f"`opnp report {self.out}` makes one page of all models."
        )
        if record.remark:
            typer.echo(record.remark)


def _failures(failed: Mapping[str, str], protocol: "Protocol") -> str:
    reasons = "; ".join(f"{name}: {reason.removesuffix('.')}" for name, reason in failed.items())
    return f"{len(failed)} of {len(protocol.models)} models did not run: {reasons}."

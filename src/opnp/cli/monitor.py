"""``opnp monitor``: whether the stream in score files is still like the calibration samples."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opnp.cli.options import JsonFlag
from opnp.cli.output import print_facts, print_json
from opnp.errors import DataFileError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from opnp.data.tables import ScoreTable
    from opnp.detector import OPNP
    from opnp.monitor import DriftMonitor, DriftSummary
    from opnp.monitor.stream import CountedScores

_ALARM_CODE = 3
_BARS = 10
_BAR_WIDTH = 40
_MEANING = """
Two shares that differ. Flagged: how many inputs are unlike the calibration samples, each compared with those alone.
p-values up to 0.05: each compared with calibration and all earlier samples, and what the test bets on. OOD inputs that
follow many others like them are no news to it: in a stream full of them this share is far below the first."""


def monitor(
    files: Annotated[
        list[Path],
        typer.Argument(help="Score files of `opnp score`, or its folders with --ray, in the order of the stream."),
    ],
    *,
    detector: Annotated[
        Path | None,
        typer.Option(help="Detector that scored the files. Without it their p-values are used, and one side is seen."),
    ] = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(
            help="Without --detector: samples that it was calibrated on. Default: as the files say, or their p-values.",
            min=1,
        ),
    ] = None,
    level: Annotated[float, typer.Option(help="Probability of ever raising a false alarm, at most.")] = 0.01,
    state: Annotated[
        Path | None,
        typer.Option(help="With --detector: file to go on from, if it is there, and to write what was seen to."),
    ] = None,
    repeated: Annotated[
        bool, typer.Option("--repeated", help="Count scores again that were counted before, in files or in --state.")
    ] = False,
    fail_on_alarm: Annotated[
        bool, typer.Option("--fail-on-alarm", help=f"Leave with exit code {_ALARM_CODE} if there is an alarm.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the numbers that break ties.", min=0)] = 0,
    json: JsonFlag = False,
) -> None:
    """Say whether a stream of scores is still in distribution: a test that is valid at any time, with few false alarms.

    The rows must be in the order in which the inputs came: files sorted by class look like a change. The evidence grows
    when scores stop looking like the calibration scores; an alarm stays. The exit code is 0 with and without
    an alarm; with --fail-on-alarm an alarm is exit code 3. Each file belongs to a --state only once: what was counted
    before, under any name, is refused.
    """
    from opnp.data.tables import read_score_table
    from opnp.monitor.stream import CountedScores, locked_state

    files = [part for path in files for part in sorted(path.glob("*.parquet")) or [path]]  # a file has none within
    tables = [read_score_table(path) for path in files]
    samples: int | str
    if detector is not None:
        if calibration_samples is not None:
            raise OptionError("`--calibration-samples` is for use without `--detector`, which knows the number.")
        with nullcontext() if state is None else locked_state(state):
            watching = _opened(detector, files, tables, state=state, level=level, seed=seed)
            counted, before = (
                _counted(files, tables, watching.counted, state=state, repeated=repeated),
                watching.samples,
            )
            for table in tables:
                watching.update(table.scores)
            watching.counted = counted
            if state is not None:
                watching.save(state)
        found, samples = watching.summary(), watching.calibration_samples  # by class too: scores are compared with all
    elif state is not None:
        raise OptionError("`--state` needs the calibration scores: give `--detector` as well.")
    else:
        _counted(files, tables, CountedScores(), state=None, repeated=repeated)
        before, (found, samples) = 0, _by_p_values(files, tables, calibration_samples, level=level, seed=seed)
    facts = _facts(found, files, tables, before=before, is_two_sided=detector is not None) | {
        "calibration_samples": samples
    }
    if json:
        print_json(found.to_json() | facts)
    else:
        _show(found, facts)
    if fail_on_alarm and found.alarm_at is not None:
        raise typer.Exit(_ALARM_CODE)


def _opened(
    path: Path, files: list[Path], tables: list["ScoreTable"], *, state: Path | None, level: float, seed: int
) -> "DriftMonitor":
    """Return the monitor of a detector, as `state` left it if there is such a file."""
    from opnp.detector import OPNP
    from opnp.monitor import DriftMonitor

    loaded = OPNP.load(path)
    calibration = loaded.calibration_scores
    _require_own(files, tables, loaded, path)
    if state is None or not state.exists():
        return DriftMonitor(calibration, level=level, seed=seed)
    watching = DriftMonitor.load(state)
    if not watching.is_calibrated_by(calibration):
        raise OptionError(f"{state} is of another detector than {path}. Start with a new `--state`.")
    if (watching.level, watching.seed) != (level, seed):
        raise OptionError(
            f"{state} was started with `--level {watching.level:g} --seed {watching.seed}`: give the same, or "
            f"start with a new `--state`.",
        )
    return watching


def _counted(
    files: list[Path], tables: list["ScoreTable"], counted: "CountedScores", *, state: Path | None, repeated: bool
) -> "CountedScores":
    """Return what is counted once these files are; raise `OptionError` if some of it was counted before."""
    from opnp.monitor.stream import CountedScores

    given: dict[CountedScores, Path] = {}
    for path, table in zip(files, tables, strict=True):
        rows = counted.repeated(table.scores)
        if rows and not repeated:
            part = "its" if rows == len(table.scores) else f"the first {rows} of its"
            earlier = next((other for one, other in given.items() if one.repeated(table.scores)), None)
            where = f"in {state}" if earlier is None else f"with {earlier}"
            raise OptionError(
                f"{path}: {part} {len(table.scores)} scores are counted {where} already; counted twice they look like "
                f"a change. Leave the file out, or give only the rows that are new. If the stream really repeats "
                f"itself, give `--repeated`.",
            )
        counted = counted.joined(table.scores)
        given[CountedScores().joined(table.scores)] = path
    return counted


def _by_p_values(
    files: list[Path], tables: list["ScoreTable"], samples: int | None, *, level: float, seed: int
) -> tuple["DriftSummary", int | str]:
    """Return the verdict, and the number of calibration samples, by class the least and the largest as text."""
    import torch

    from opnp.monitor.p_values import drift_of_p_values, inferred_calibration_samples

    columns = [table.p_values for table in tables if table.p_values is not None]
    for path, table in zip(files, tables, strict=True):
        if table.p_values is None:
            raise DataFileError(
                f"{path} holds no p-values. Give `--detector`, if it is calibrated, or calibrate it and score again.",
            )
    scores, p_values = torch.cat([table.scores for table in tables]), torch.cat(columns)
    counts = [table.calibration_samples for table in tables if table.calibration_samples is not None]
    known: int | Tensor
    if len(counts) == len(tables):
        known = torch.cat(counts)
        if samples is not None and bool((known != samples).any()):
            raise OptionError(
                f"`--calibration-samples {samples}` contradicts the files, which say {_range(known)}: leave it out."
            )
    else:
        known = inferred_calibration_samples(p_values) if samples is None else samples
    found = drift_of_p_values(
        scores, p_values, calibration_samples=known, groups=_groups(files, tables), level=level, seed=seed
    )
    return found, known if isinstance(known, int) else _range(known)


def _range(counts: "Tensor") -> int | str:
    """Return the number that all counts are, or the least and the largest, as text."""
    least, most = int(counts.min()), int(counts.max())
    return least if least == most else f"{least} to {most}"


def _groups(files: list[Path], tables: list["ScoreTable"]) -> "Tensor | None":
    """Return the group of each row as a number, or None where no file knows of groups."""
    import torch

    named = [table.calibration_groups for table in tables if table.calibration_groups is not None]
    if not named:
        return None
    for path, table in zip(files, tables, strict=True):
        if table.calibration_groups is None:
            raise DataFileError(
                f"{path} is of a detector that is not calibrated by class, and other files are of one that is: monitor "
                f"the files of each detector by themselves."
            )
    names = [name for each in named for name in each]
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([places[name] for name in names], device="cpu")


def _require_own(files: list[Path], tables: list["ScoreTable"], detector: "OPNP", path: Path) -> None:
    """Raise `DataFileError` if p-values in a file are not those that this detector gives to its scores."""
    import torch

    from opnp.core import conformal_p_value

    for file, table in zip(files, tables, strict=True):
        if table.p_values is None:
            continue
        if detector.calibrated_by is not None and table.classes is None:
            raise DataFileError(f"{file} has no column `predicted_class`, which p-values by class depend on.")
        expected = torch.full_like(table.p_values, torch.nan)
        for group in detector.calibration_groups:
            own = torch.ones_like(expected, dtype=torch.bool)
            if detector.calibrated_by is not None and table.classes is not None:
                own = torch.isin(table.classes, torch.tensor(group.classes, device="cpu"))
            if bool(own.any()):
                expected[own] = conformal_p_value(table.scores[own], group.calibration.scores)
        if not torch.equal(expected, table.p_values):
            raise DataFileError(f"{file} was scored by another detector than {path}, or before it was calibrated anew.")


def _facts(
    found: "DriftSummary", files: list[Path], tables: list["ScoreTable"], *, before: int, is_two_sided: bool
) -> dict[str, object]:
    """Return what the files add to the verdict: where the alarm fell, how many were flagged, what was looked for."""
    alarm_file, alarm_row, start = None, None, before
    for path, table in zip(files, tables, strict=True):
        if found.alarm_at is not None and start <= found.alarm_at < start + len(table.scores):
            alarm_file, alarm_row = str(path), found.alarm_at - start
        start += len(table.scores)
    verdicts = [table.is_ood for table in tables if table.is_ood is not None]
    judged = sum(map(len, verdicts))
    return {
        "verdict": "no alarm" if found.alarm_at is None else "alarm",
        "looked_for": "scores that became larger, smaller or more alike"
        if is_two_sided
        else "scores that became larger",
        "alarm_file": alarm_file,
        "alarm_row": alarm_row,
        "flagged_share": sum(int(flags.sum()) for flags in verdicts) / judged if judged else None,
    }


def _show(found: "DriftSummary", facts: dict[str, object]) -> None:
    where = "none"
    if found.alarm_at is not None:
        row = (
            "before these files" if facts["alarm_file"] is None else f"{facts['alarm_file']}, row {facts['alarm_row']}"
        )
        where = f"sample {found.alarm_at + 1} ({row})"
    flagged, small = facts["flagged_share"], found.small_share
    typer.echo(found.sentence + "\n")
    print_facts(
        {
            "alarm": where,
            "alarm level": f"{found.level:g}",
            "samples": found.samples,
            "calibration samples": facts["calibration_samples"],
            "looked for": facts["looked_for"],
            "evidence now": _evidence(found.log_wealth),
            "greatest": f"{_evidence(found.peak_log_wealth)} (alarm at {1 / found.level:g})",
            "p-value at any time": f"{found.p_value:.3g}",
            "flagged in these files": "unknown" if flagged is None else f"{flagged:.1%}",
            "p-values up to 0.05": f"{small:.1%} (5.0% expected)",
        }
    )
    typer.echo(_MEANING)
    typer.echo("\np-values among calibration and earlier samples; | where ID samples would reach")
    joined = len(found.counts) // _BARS
    for start in range(0, len(found.counts), joined):
        share = sum(found.counts[start : start + joined]) / found.samples
        length = min(round(share * _BARS * _BAR_WIDTH / 2), 2 * _BAR_WIDTH)
        bar = ("#" * length).ljust(_BAR_WIDTH // 2)
        typer.echo(
            f"  {found.edges[start]:.1f}-{found.edges[start + joined]:.1f}  {share:6.1%}  {_marked(bar)}".rstrip()
        )


def _marked(bar: str) -> str:
    """Return a bar with a mark where a uniform share would end."""
    return bar[: _BAR_WIDTH // 2] + "|" + bar[_BAR_WIDTH // 2 :]


def _evidence(log_wealth: float) -> str:
    """Return the wealth as a number, or as a power of ten where it is large or small."""
    power = log_wealth / 2.302585092994046
    return f"{10**power:.3g}" if abs(power) < 6 else f"1e{power:+.0f}"

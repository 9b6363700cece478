"""The results page of the documentation, from the records on disk alone.

python -m studies.results_page docs/records docs/explanation/results.md
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from opnp.values.bench import BenchRecord
from opnp.values.sweep import SweepRecord
from studies.result_tables import (
    NOTABLE,
    combination_table,
    combinations,
    left_out_table,
    method_table,
    other_table,
    panel_table,
    parts_table,
    ratio_tables,
    regret_table,
    samples_table,
    settings_table,
    short_table,
)
from studies.robustness_tables import (
    caught_table,
    chosen_table,
    failures_table,
    flagged_table,
    labels_table,
    side_regrets_table,
    sides_table,
    spread_table,
    training_table,
)

__all__ = ["Records", "best_single", "main", "results_page"]


@dataclass(frozen=True, slots=True)
class Records:
    """What the page is made of.

    Attributes:
        panel: The fusion and its members, every single setting and every fusion tried.
        bench: Every method on the models with cached features.
        other: The same on intents of sentences and on rows of a table.
        sweep: The ablations of the paper's method.
        panel_other: As `panel`, on intents of sentences and on rows of a table.
        spread: `OPNP()` and every single setting from split to split, near and far, under both conventions.
        robustness: `OPNP()` with less data, with labels, and against wrong answers.

    """

    panel: dict[str, Any]
    bench: BenchRecord
    other: BenchRecord
    sweep: SweepRecord
    panel_other: dict[str, Any]
    spread: dict[str, Any]
    robustness: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the records of a folder."""

        def text(name: str) -> str:
            return (folder / f"{name}.json").read_text(encoding="utf-8")

        return cls(
            panel=json.loads(text("panel")),
            bench=BenchRecord.from_json(text("bench")),
            other=BenchRecord.from_json(text("bench_other")),
            sweep=SweepRecord.from_json(text("sweep")),
            panel_other=json.loads(text("panel_other")),
            spread=json.loads(text("spread")),
            robustness=json.loads(text("robustness")),
        )


def results_page(records: Records) -> str:
    """Return the page as Markdown."""
    panel = records.panel
    parts = [
        _PREFACE,
        _in_short(panel, records.panel_other),
        short_table(panel),
        _SHORT,
        _PANEL.format(splits=panel["splits"]),
        panel_table(panel),
        _REGRETS,
        regret_table(panel, kind="single"),
        _MEMBERS,
        regret_table(panel, kind="fusion", start="OPNP()"),
        _FORMS,
        regret_table(panel, kind="fusion", start="panel with", most=12),
        _form_reading(panel),
        left_out_table(panel),
        _CHOSEN,
        chosen_table(panel),
        *_robustness(records),
        _METHODS,
    ]
    for model in records.bench.models:
        samples = ", ".join(f"{name} {source.samples}" for name, source in sorted(model.data.items()) if name != "head")
        near = ", ".join(sorted(name for name, value in model.nearness.items() if value == "near")) or "none"
        parts += [f"### {model.model}", f"Samples: {samples}. Near: {near}.", method_table(model)]
    parts += [_combinations(records.bench), combination_table(records.bench)]
    parts += [_OTHERS, regret_table(records.panel_other, kind="fusion", start="OPNP()")]
    parts += [_OTHER_SINGLES, regret_table(records.panel_other, kind="single")]
    parts += ["All methods on the intents, means over the seeds:", other_table(records.other, "clinc150")]
    parts += ["All methods on the table, means over the seeds:", other_table(records.other, "digits")]
    parts += [_ABLATIONS, parts_table(records.sweep, "parts"), _PAPER_RATIOS, parts_table(records.sweep, "parts-paper")]
    parts += [_RATIOS]
    for swept in records.sweep.models:
        parts += [f"### Ratios on {swept.model}", ratio_tables(swept)]
    parts += [_SAMPLES, samples_table(records.sweep)]
    parts += [_SETTINGS, settings_table()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _robustness(records: Records) -> list[str]:
    """Return the parts on spread, less data, labels and wrong answers."""
    models, spread, robustness = list(records.panel["best_single"]), records.spread, records.robustness
    keep = f"{100 * robustness['keep']:g}"
    parts = [_SPREAD.format(splits=spread["splits"]), spread_table(spread)]
    parts += [_SIDES, sides_table(spread), _SIDE_REGRETS, side_regrets_table(spread)]
    parts += [_TRAINING, training_table(robustness, models)]
    parts += [_HELD_OUT.format(keep=keep, draws=robustness["draws"]), flagged_table(robustness, models)]
    parts += [_CAUGHT, caught_table(robustness, models)]
    parts += [_LABELS, labels_table(robustness, models)]
    return [*parts, _FAILURES, failures_table(robustness)]


def _in_short(panel: dict[str, Any], other: dict[str, Any]) -> str:
    """Return the findings, with their numbers."""
    rows, other_rows = panel["rows"], other["rows"]
    fused, energy, bare = rows["OPNP()"], rows["Energy"], rows["panel without a pruned head"]
    name, single = best_single(rows)
    other_name, other_single = best_single(other_rows)
    by_split = fused["mean_regret_by_split"]
    lost = [model for model, regret in fused["regret"].items() if regret >= NOTABLE]
    return _IN_SHORT.format(
        models=len(fused["auroc"]),
        mean=fused["mean_regret"],
        worst=fused["worst_regret"],
        low=min(by_split),
        high=max(by_split),
        splits=panel["splits"],
        single=name,
        single_mean=single["mean_regret"],
        single_worst=single["worst_regret"],
        energy_mean=energy["mean_regret"],
        energy_worst=energy["worst_regret"],
        bare=bare["mean_regret"],
        bare_worst=bare["worst_regret"],
        chosen=panel["left_out"]["single setting"]["mean"],
        chosen_worst=panel["left_out"]["single setting"]["worst"],
        others=len(other["best_single"]),
        other_mean=other_rows["OPNP()"]["mean_regret"],
        other_worst=other_rows["OPNP()"]["worst_regret"],
        other_bare=other_rows["OPNP() without opnp"]["mean_regret"],
        other_bare_worst=other_rows["OPNP() without opnp"]["worst_regret"],
        other_single=other_name,
        other_single_mean=other_single["mean_regret"],
        other_single_worst=other_single["worst_regret"],
        other_energy=other_rows["Energy"]["mean_regret"],
        other_energy_worst=other_rows["Energy"]["worst_regret"],
        lost=", ".join(f"{model} ({fused['regret'][model]:.2f})" for model in lost) or "none",
    )


def best_single(rows: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the single setting of least mean regret over all models, and its row."""
    singles = {name: row for name, row in rows.items() if row["kind"] == "single"}
    return min(singles.items(), key=lambda pair: float(pair[1]["mean_regret"]))


def _combinations(record: BenchRecord) -> str:
    """Return what the head changes in short: how often it helps and hurts, and the ends."""
    changes = combinations(record).items()
    found = {(name, model): each.change for name, of_name in changes for model, each in of_name.items()}
    (low, least), *_, (high, most) = sorted(found.items(), key=lambda item: item[1])
    return _COMBINATIONS.format(
        pairs=len(found),
        helped=sum(change >= NOTABLE for change in found.values()),
        hurt=sum(change <= -NOTABLE for change in found.values()),
        most=f"{most:+.2f} for {high[0]} on {high[1]}",
        least=f"{least:+.2f} for {low[0]} on {low[1]}",
    )


def _form_reading(panel: dict[str, Any]) -> str:
    found = panel["left_out"]["form of the pruned head"]
    return _FORM_READING.format(mean=found["mean"], worst=found["worst"])


_PREFACE = """
# Results

<!-- Made by `make results` from docs/records; do not edit. -->

Every number here comes from a record in `docs/records`, and `make records` makes those again. FPR95 / AUROC in %, ID
is the positive class: FPR95 is the share of OOD kept where 95 % of ID is kept. Lower FPR95 and higher AUROC are
better. The other reading of FPR95 and both AUPR stand in the records. The OOD sets are parts of public sets, so
figures compare methods on the same data; they are not those of a paper's table.
"""

_IN_SHORT = """
## In short

Regret of a method on a model is the AUROC of the best of 26 published single settings on that model, chosen with
hindsight, less its own; at least 0. On {models} real models:

- **`OPNP()`, with nothing given and nothing tuned: mean regret {mean:.2f}, worst {worst:.2f}** points of AUROC. Over
  {splits} random splits of the ID samples the mean lies between {low:.2f} and {high:.2f}.
- The best single setting over all of them, {single}: mean {single_mean:.2f}, worst {single_worst:.2f}. Chosen on all
  models but one and judged on that: mean {chosen:.2f}, worst {chosen_worst:.2f}. The plain energy: mean
  {energy_mean:.2f}, worst {energy_worst:.2f}.
- The pruned head, whose form was chosen on them, earns its place: without it the mean regret is
  {bare:.2f} and the worst {bare_worst:.2f}.
- Models on which a single setting, known beforehand, would have been better by 0.1 or more: {lost}.
- On {others} classifiers of sentences and of tables, three of each, that had no part in that choice: mean regret
  {other_mean:.2f}, worst {other_worst:.2f}, and without the pruned head {other_bare:.2f} and {other_bare_worst:.2f}.
  The best single setting over all of them, {other_single}: mean {other_single_mean:.2f}, worst
  {other_single_worst:.2f}. The plain energy: mean {other_energy:.2f}, worst {other_energy_worst:.2f}.

Panel and constants were set with these models at hand, which flatters them. What was chosen among many forms, that of
the pruned head and the members, is judged below by leaving each model out. Models that nothing was set on are the
honest judge.
"""

_SHORT = """
Means over all splits (`docs/records/panel.json`). A member by itself is fitted as in the fusion, without the training
samples that give the scales; the best setting is fitted on all of them.
"""

_PANEL = """
## The fusion, its members, and the best single setting

AUROC in %, mean over a model's OOD sets, mean over {splits} random splits that set some ID test samples aside, as one
would to calibrate. Single settings are fitted on all training samples. `OPNP()` keeps a fifth of them, at most 2000,
out of its sums.
"""

_REGRETS = """
## Regret of every single setting

No single score is good everywhere: what is best on one model is bad on the next.
"""

_MEMBERS = """
## What each member contributes

One member left out, or one more:

"""

_FORMS = """
## The form of the pruned head

The paper's head can be read by the energy, GEN or MSP, with or without SCALE on the features, at several ratios, ranked
over the layer or by class. Each form as the seventh member, the best twelve; all of them stand in
`docs/records/panel.json`. Removing the largest sensitivities, or neurons, is worse than no pruned head.
"""

_FORM_READING = """
Two shares of the least sensitive weights, 0.5 and 0.8, are level; 0.5 is the default because it removes less. Chosen on
all models but one and judged on that, the form has a mean regret of {mean:.2f} and a worst one of {worst:.2f}:
"""

_CHOSEN = """
The same for all that was chosen among many on these models: the form of the pruned head, the members (every fusion of
the table above and those that the panel started from), and, beside them, one single setting for all models:
"""

_SPREAD = """
## From split to split

Mean and standard deviation over {splits} random splits of the ID samples, in %. The splits overlap: the deviation says
what the choice of the rows that judge does, and not what other data would. FPR95 under both conventions: the share of
OOD kept where 95 % of ID is kept, as in the papers, and the share of ID flagged where 95 % of OOD is caught, as in
OpenOOD and pytorch-ood.
"""

_SIDES = """
## Near and far apart

AUROC in % with its deviation over the splits. The best of 26 is the best on that side, known with hindsight.
"""

_SIDE_REGRETS = """
Regret by side and by figure, mean / worst over the models, each against the single setting that is best by that very
figure: points of AUROC below it, or points of FPR95 above it.
"""

_TRAINING = """
## Fewer training samples

AUROC of `OPNP()` in % after so many training samples, all ID test samples judging: the mean over random draws, with
the lowest and the highest. Below it the member that is best by itself on the same samples, with hindsight.
"""

_HELD_OUT = """
## Few held-out samples

Held-out samples calibrate; they move no score, so AUROC and FPR95 do not depend on them. What depends on them is how
far the share of ID that is flagged lies from what was asked for. At a share of {keep} % to keep, in {draws} random
draws: the mean in %, with the 5 and the 95 % quantile. The exact mean follows from the number of samples alone.
"""

_CAUGHT = """
The share of OOD samples that these verdicts catch, in %, mean over the OOD sets:
"""

_LABELS = """
## With labels and without

`OPNP()` reads no label: Mahalanobis++ takes its class means by the class that the head predicts. AUROC in % as it is,
with the classes of the training labels, and without the member that needs class means:
"""

_FAILURES = """
## Does the score tell wrong answers?

Another question than OOD: of the ID test samples, does a score put those that the model gets wrong above those that it
gets right? AUROC in % of wrong against right answers, with accuracy and expected calibration error of the model, whose
answers no detector changes. For this MSP is the score to beat; the fusion is made for another question.
"""

_METHODS = """
## All methods, near and far apart

Accuracy and ECE are those of the logits the score is read off (shaped features, pruned head); the detector answers with
the original head. `OPNP()`, its members alone and the energy that says so are judged by the part of the test samples
that is not set aside; the others by all of them.
"""

_COMBINATIONS = """
## Baselines on a pruned head

Mean AUROC alone, and what the head pruned by rho_w_min = 0.3 changes. Of {pairs} pairs of a baseline and a model
{helped} gain a tenth of a point or more, and {hurt} lose as much. The ends: {most}, and {least}.
"""

_OTHERS = """
## Not images: intents of sentences, rows of a table

CLINC150, 150 intents against out-of-scope sentences, a perceptron on TF-IDF; and a table of digits, seven classes
against three unseen ones (near) and against shuffled columns (far). Three trained classifiers each. They had no
part in the choice of members and form. Regret as above, over all six: the fusion, one member left out, or one more:
"""

_OTHER_SINGLES = """
Every single setting:
"""

_ABLATIONS = """
## Weights, neurons, both

At rho_w_min = 0.3 and rho_o_min = 0.1, mean over all OOD sets:
"""

_PAPER_RATIOS = """
At what the paper holds fixed for ResNet-50, rho_w_max = 0.005 and rho_o_max = 0.3. On most of these models it
is ruinous:
"""

_RATIOS = """
## Each ratio by itself

The value that does best with hindsight, for far and for near OOD, with the accuracy of the pruned head there. The
whole curves, those of the paper's Figure 3 with a fixed partner, temperatures, scores and pairs of ratios stand in
`docs/records/sweep.json`.
"""

_SAMPLES = """
## How many training samples the sensitivities need

Mean AUROC at the base ratios; with several draws, the mean and in brackets the smallest and the largest.
"""

_SETTINGS = """
## Settings of the baselines

Fixed beforehand. KNN has at most 1 % of the training samples as neighbours, ViM at most half the features as
subspace.
"""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="folder of the records")
    parser.add_argument("out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(results_page(Records.read(options.records)), encoding="utf-8")


if __name__ == "__main__":
    main()

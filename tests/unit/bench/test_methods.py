"""Which rows there are, and which are chosen."""

import pytest

from opnp import PANEL, Ratios
from opnp.adapters import BASELINE_NAMES
from opnp.bench.methods import (
    Method,
    available_methods,
    chosen_methods,
    includes_odin,
    published_settings,
    ratios_label,
)
from opnp.errors import OptionError
from opnp.values.bench import TUNED

PRODUCT_ROWS = ["Energy, rest of test", "OPNP()", *(f"{name} alone" for name in PANEL)]
AVAILABLE = available_methods(classes=4, features=16, samples=240)


def pruned_by(ratios: Ratios) -> list[Method]:
    return available_methods(classes=4, features=16, samples=240, pruned=ratios)


def of_group(group: str) -> list[Method]:
    return [each for each in AVAILABLE if each.group == group]


def test_every_baseline_and_every_group_is_there() -> None:
    names = [each.name for each in AVAILABLE]
    assert len(set(names)) == len(names)
    assert {each.family.removesuffix("-pytorch-ood") for each in of_group("baseline")} == {*BASELINE_NAMES, "ODIN"}
    combined = {each.name.split()[0] for each in of_group("combination") if each.split == "test"}
    assert combined == {"MSP", "MaxLogit", "Energy", "Entropy", "GEN", "ReAct", "ASH-S", "SCALE"}
    on_tuned = {each.name.split()[0] for each in of_group("combination") if each.split == "rest"}
    assert on_tuned == {"MSP", "GEN", "ReAct", "DICE", "ASH-S", "SCALE"}
    assert {*TUNED} < {each.name for each in of_group("tuned")}
    assert [each.name for each in of_group("product")] == PRODUCT_ROWS


def test_combinations_follow_the_pruned_ratios() -> None:
    names = {each.name for each in pruned_by(Ratios(o_max=0.1))}
    assert {"MaxLogit + ONP gradient rho_o_max=0.1", "ONP gradient rho_o_max=0.1"} <= names
    assert len(pruned_by(Ratios(w_min=0.8))) == len(AVAILABLE) - 1  # it is a reference anyway


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["energy"], ["Energy"]),
        (["max_logit", "MSP"], ["MSP", "MaxLogit"]),
        (["ash s"], ["ASH-S percentile=0.65", "ASH-S percentile=0.9", "ASH-S percentile=0.95"]),
        (["OPNP"], ["Energy, rest of test", "OPNP()"]),
        (["opnp-members"], [name for name in PRODUCT_ROWS if name != "OPNP()"]),
        (["product"], PRODUCT_ROWS),
        (["energy-pytorch-ood"], ["Energy (pytorch-ood)"]),
        (["O-D-I-N"], ["ODIN temperature=1000 eps=0.0014"]),
    ],
)
def test_names_choose_rows(asked: list[str], expected: list[str]) -> None:
    assert [each.name for each in chosen_methods(AVAILABLE, asked)] == expected
    assert includes_odin(asked) == ("O-D-I-N" in asked)


def test_groups_choose_all_of_theirs() -> None:
    offered = [each for each in AVAILABLE if each.family != "ODIN" and "tuned" not in each.family]
    assert chosen_methods(AVAILABLE, None) == offered
    assert chosen_methods(AVAILABLE, ["reference", "baselines", "combinations", "product"]) == offered


def test_tuned_rows_are_offered_where_there_are_ood_validation_samples() -> None:
    tunable = available_methods(classes=4, features=16, samples=240, is_tunable=True)
    tuned = [each.name for each in tunable if "tuned" in each.family]
    assert len(tuned) == len([each for each in AVAILABLE if "tuned" in each.family]) > len(TUNED)
    assert tuned == [each.name for each in chosen_methods(tunable, None) if "tuned" in each.family]
    asked = [each.name for each in chosen_methods(AVAILABLE, ["opnp-tuned", "dice-tuned"])]
    assert asked == [*tuned[:5], "DICE p=0.9 + OPNP tuned", "Energy, rest of test"]


@pytest.mark.parametrize("asked", [["gram"], ["energy", "gram"], []])
def test_unknown_names_list_the_known(asked: list[str]) -> None:
    with pytest.raises(OptionError, match=r"reference, baselines.*MaxLogit.*OPNP-members\), got ('gram'|none)"):
        chosen_methods(AVAILABLE, asked)


@pytest.mark.parametrize(
    ("classes", "features", "samples", "expected"),
    [
        (10, 342, 25000, {"KNN k=50", "ViM d=100", "DICE p=0.9"}),
        (100, 342, 25000, {"KNN k=200", "ViM d=100", "DICE p=0.9"}),
        (1000, 1280, 1000, {"KNN k=10", "ViM d=256", "DICE p=0.9", "DICE p=0.7"}),
        (1000, 2048, 1_000_000, {"KNN k=1000", "ViM d=256", "DICE p=0.9", "DICE p=0.7"}),
        (3, 8, 50, {"KNN k=1", "ViM d=4", "DICE p=0.9"}),
    ],
)
def test_published_settings_follow_the_size(classes: int, features: int, samples: int, expected: set[str]) -> None:
    settings = published_settings(classes=classes, features=features, samples=samples)
    labels = [each.label for each in settings]
    assert len(set(labels)) == len(labels)
    assert {label for label in labels if label.split()[0] in ("KNN", "ViM", "DICE")} == expected
    assert all(each.citation for each in settings)


def test_labels_of_ratios() -> None:
    assert ratios_label(Ratios()) == "no pruning"
    assert ratios_label(Ratios(w_min=0.1, w_max=0.2)) == "OPP rho_w_min=0.1 rho_w_max=0.2"

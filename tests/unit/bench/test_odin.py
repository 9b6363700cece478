"""ODIN's scores beside features: stored whole, shown where they belong to the features, and never else."""

import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file
from torch import Tensor, nn

from opnp.adapters import odin_scores
from opnp.bench.features import ModelData, read_feature_folder, split_test
from opnp.bench.methods import Method, available_methods, chosen_methods
from opnp.bench.odin import OdinAbout, OdinScores, cache_odin, read_odin, write_odin
from opnp.bench.run import ModelRun, run_bench
from opnp.data import write_features
from opnp.errors import DataFileError
from opnp.values.bench import MethodRow
from tests.unit.bench.bench_world import read_world, world_features, write_world
from tests.unit.bench.image_world import INPUTS, image_sets, tiny_model, write_images

NAME = "ODIN temperature=1000 eps=0.0014"
SAMPLES = {"test": 120, "ood_noise": 60}


def stored(folder: Path, *, reason: str = "") -> OdinScores:
    """Write random scores beside the features of a world, and return them."""
    sources = read_feature_folder(folder).sources
    names = [name for name in sources if name == "test" or name.startswith("ood_")]
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(sources[name].samples, generator=generator, dtype=torch.float64) for name in names}
    about = OdinAbout(
        temperature=1000.0,
        eps=0.0014,
        norm_std=(0.25, 0.2, 0.1),
        computed_with="pytorch-ood 0.4.0",
        reason=reason,
        features_sha256={} if reason else {name: sources[name].sha256 for name in names},
    )
    odin = OdinScores(about, {} if reason else scores)
    write_odin(folder, odin)
    return odin


def offered(model: ModelData, names: list[str] | None) -> list[Method]:
    available = available_methods(classes=4, features=16, samples=240, odin=model.odin)
    return [method for method in chosen_methods(available, names) if method.family == "ODIN"]


def row_of(folder: Path, ood: list[str] | None = None) -> tuple[MethodRow, ModelRun]:
    run = ModelRun(read_feature_folder(folder, ood=ood), split_test(240), seed=0, near=frozenset())
    return run.result(offered(run.model, ["odin"])).methods[0], run


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    odin = stored(write_world(tmp_path))
    found = read_odin(tmp_path)
    assert found is not None
    assert found.about.settings == odin.about.settings
    assert all(torch.equal(found.scores[name], scores) for name, scores in odin.scores.items())
    before = (tmp_path / "odin.safetensors").read_bytes()
    write_odin(tmp_path, found)
    assert (tmp_path / "odin.safetensors").read_bytes() == before
    assert read_odin(tmp_path / "absent") is None


def test_the_row_is_that_of_the_stored_scores(tmp_path: Path) -> None:
    odin = stored(write_world(tmp_path))
    row, run = row_of(tmp_path)
    assert (row.method, row.status, row.group, row.source) == (NAME, "ok", "baseline", "pytorch-ood")
    assert row.settings == odin.about.settings
    assert row.after is None
    assert {block.set for block in run.scores} == set(odin.scores)
    assert all(torch.equal(block.score, odin.scores[block.set]) for block in run.scores)
    assert run.timings == {}


def test_it_is_offered_where_it_is_there_and_else_only_if_asked_for(tmp_path: Path) -> None:
    model = read_world(tmp_path)
    assert [len(offered(model, names)) for names in (None, ["baselines"], ["odin"])] == [0, 0, 1]
    stored(tmp_path)
    model = read_feature_folder(tmp_path)
    assert [len(offered(model, names)) for names in (None, ["baselines"], ["ODIN"], ["energy"])] == [1, 1, 1, 0]


def test_without_scores_the_row_says_why(tmp_path: Path) -> None:
    row, _ = row_of(write_world(tmp_path))
    assert (row.status, row.method) == ("failed", NAME)
    assert "there are features alone" in row.reason
    assert "`opnp cache`" in row.reason
    stored(tmp_path, reason="pytorch-ood raised RuntimeError: no gradient")
    row, _ = row_of(tmp_path)
    assert (row.status, row.reason) == ("failed", "pytorch-ood raised RuntimeError: no gradient")


def test_a_row_that_is_not_what_is_stored_runs_again_when_resumed(tmp_path: Path) -> None:
    world, out = write_world(tmp_path / "net"), tmp_path / "out"
    for reason, package in (("no gradient", "a 1"), ("", "a 1"), ("", "a 2"), ("no images", "a 2")):
        odin = stored(world, reason=reason)
        write_odin(world, OdinScores(replace(odin.about, computed_with=package), odin.scores))
        row = run_bench(world, out, methods=["odin"], is_resumed=True).models[0].row(NAME)
        assert (row.reason, row.settings["computed_with"]) == (reason, package)
        before = (out / "results.json").stat().st_mtime_ns
        run_bench(world, out, methods=["odin"], is_resumed=True)
        assert (out / "results.json").stat().st_mtime_ns == before  # kept


def test_scores_of_other_features_are_not_shown(tmp_path: Path) -> None:
    stored(write_world(tmp_path))
    write_features(tmp_path / "test.safetensors", world_features(240, seed=9)[0])
    write_features(tmp_path / "ood_new.safetensors", world_features(50, seed=8)[0])
    row, _ = row_of(tmp_path)
    assert row.status == "failed"
    assert "belong to the features of test, ood_new: cache them again" in row.reason
    assert "of test: cache them again" in row_of(tmp_path, ["noise"])[0].reason


def test_a_damaged_file_is_told_and_computed_again(tmp_path: Path) -> None:
    odin = stored(write_world(tmp_path / "world"))
    file = tmp_path / "world" / "odin.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(DataFileError, match=r"odin\.safetensors holds no scores of ODIN that can be read"):
            read_feature_folder(tmp_path / "world")
    save_file({"test": torch.ones(3)}, file)
    with pytest.raises(DataFileError, match="holds no scores of ODIN"):
        read_odin(tmp_path / "world")
    file.write_bytes(whole.replace(b'\\"format\\": 1', b'\\"format\\": 7'))
    with pytest.raises(DataFileError, match="has format 7, and this opnp reads 1: cache the features again"):
        read_odin(tmp_path / "world")
    matrices = {name: torch.ones(2, 2) for name in odin.scores}
    for wrong in (OdinScores(replace(odin.about, features_sha256={}), odin.scores), OdinScores(odin.about, matrices)):
        write_odin(tmp_path / "world", wrong)
        with pytest.raises(DataFileError, match="holds no scores of ODIN"):
            read_odin(tmp_path / "world")
    found = cache_odin(tiny_model(), {}, tmp_path / "world", std=(1.0,) * 3, samples={}, features_sha256={})
    assert found.scores == {}
    assert read_odin(tmp_path / "world") is not None


def test_scores_are_computed_once_and_for_what_is_asked(tmp_path: Path) -> None:
    sets = image_sets(write_images(tmp_path / "images"))
    model, digests = tiny_model(), {"test": "aa", "ood_noise": "bb"}
    loaders = {name: sets[name].batches(50) for name in digests}
    one = cache_odin(
        model, {"test": loaders["test"]}, tmp_path, std=INPUTS.std, samples=SAMPLES, features_sha256=digests
    )
    assert set(one.scores) == {"test"}
    expected = odin_scores(model, loaders["test"], std=INPUTS.std)
    assert torch.equal(one.scores["test"], expected)
    # Another model now: what is kept is seen to be kept, and what is new to be new.
    other = tiny_model(seed=1)
    both = cache_odin(other, loaders, tmp_path, std=INPUTS.std, samples=SAMPLES, features_sha256=digests)
    assert torch.equal(both.scores["test"], expected)
    assert torch.equal(both.scores["ood_noise"], odin_scores(other, loaders["ood_noise"], std=INPUTS.std))
    again = cache_odin(
        other, loaders, tmp_path, std=INPUTS.std, samples=SAMPLES, features_sha256=digests | {"test": "cc"}
    )
    assert torch.equal(again.scores["test"], odin_scores(other, loaders["test"], std=INPUTS.std))
    rescaled = cache_odin(other, {}, tmp_path, std=(1.0,) * 3, samples=SAMPLES, features_sha256=digests)
    assert rescaled.scores == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no gradient")])
def test_the_scores_of_sets_that_are_done_outlast_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    sets = image_sets(write_images(tmp_path / "images"))
    loaders = {name: sets[name].batches(60) for name in SAMPLES}
    digests, computed = {"test": "aa", "ood_noise": "bb"}, []

    def scored(_: nn.Module, loader: object, **__: object) -> Tensor:
        computed.append(loader)
        if len(computed) == 2:
            raise error
        return torch.ones(SAMPLES["test" if loader is loaders["test"] else "ood_noise"], dtype=torch.float64)

    monkeypatch.setattr("opnp.bench.odin.odin_scores", scored)
    with suppress(KeyboardInterrupt):
        cache_odin(tiny_model(), loaders, tmp_path, std=INPUTS.std, samples=SAMPLES, features_sha256=digests)
    cut = read_odin(tmp_path)
    assert cut is not None
    assert set(cut.scores) == {"test"}
    assert bool(cut.about.reason) == isinstance(error, RuntimeError)
    whole = cache_odin(tiny_model(), loaders, tmp_path, std=INPUTS.std, samples=SAMPLES, features_sha256=digests)
    assert (whole.about.reason, set(whole.scores)) == ("", {*SAMPLES})
    assert computed == [loaders["test"], loaders["ood_noise"], loaders["ood_noise"]]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), r"ODIN raised RuntimeError: .*mat1 and mat2 shapes"),
        (
            nn.Sequential(tiny_model(), nn.Threshold(1e9, float("nan"))),
            r"`scores` of ODIN on test must be finite, got 120 NaN",
        ),
    ],
    ids=["foreign", "ours"],
)
def test_what_fails_is_stored_as_the_reason(tmp_path: Path, model: nn.Module, reason: str) -> None:
    sets = image_sets(write_images(tmp_path / "images"))
    loaders = {name: sets[name].batches(60) for name in ("test", "ood_noise")}
    digests = {"test": "aa", "ood_noise": "bb"}
    found = cache_odin(model, loaders, tmp_path, std=INPUTS.std, samples=SAMPLES, features_sha256=digests)
    assert re.match(reason, found.about.reason)
    assert "\n" not in found.about.reason
    assert found.scores == {}
    written = read_odin(tmp_path)
    assert written is not None
    assert written.about.reason == found.about.reason
    mended = cache_odin(tiny_model(), loaders, tmp_path, std=INPUTS.std, samples=SAMPLES, features_sha256=digests)
    assert (mended.about.reason, set(mended.scores)) == ("", {"test", "ood_noise"})

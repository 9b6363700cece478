"""The command line as a whole: its commands, its help and its streams; nothing is written over."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from opnp.bench.demo import DEMO_FILES
from opnp.bench.run import BENCH_FILES
from opnp.bench.sweep import SWEEP_FILES
from opnp.cli.app import COMMANDS, named_command, require_distinct_files
from opnp.cli.options import CacheOptions
from opnp.errors import OptionError
from tests.in_process import Opnp, done, refused
from tests.integration.cli_world import line, write_cached
from tests.unit.bench.bench_world import write_world
from tests.unit.bench.image_world import class_images, write_module
from tests.unit.data.image_files import write_tensors


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_its_line_in_the_help_and_a_help_of_its_own(opnp: Opnp, name: str) -> None:
    listed = " ".join(re.sub(r"\W+", " ", done(opnp, "-h").out).split())
    assert re.sub(r"\W+", " ", str(COMMANDS[name].__doc__).splitlines()[0]).strip() in listed
    shown = done(opnp, name, "-h")
    assert shown.err == ""
    assert shown.out.split()[:4] == ["Usage:", "opnp", name, "[OPTIONS]"]
    assert name == "serve" or "--json" in shown.out  # a service has no result to print


def test_every_command_is_listed_in_order(opnp: Opnp) -> None:
    shown = done(opnp, "-h").out
    listed = re.findall(r"^\W{1,2}(\w+)  +\w", shown[shown.index("Commands") :], flags=re.MULTILINE)
    assert listed == list(COMMANDS)


def test_options_stand_in_groups_and_the_old_ones_are_hidden(opnp: Opnp) -> None:
    shown = done(opnp, "bench", "-h").out
    places = [shown.index(f"\N{BOX DRAWINGS LIGHT HORIZONTAL} {group} ") for group in ("Inputs", "Model", "Running")]
    assert places == sorted(places)
    assert "--head-layer" in shown
    assert "--head " not in shown


def test_a_group_of_options_is_taken_field_by_field() -> None:
    cache = {item.name for item in named_command("cache").params}
    assert set(CacheOptions.__dataclass_fields__) < cache
    assert "options" not in cache


@pytest.mark.parametrize(("typed", "meant"), [("fti", "fit"), ("scores", "score"), ("benhc", "bench")])
def test_an_unknown_command_is_answered_with_a_near_one(opnp: Opnp, typed: str, meant: str) -> None:
    outcome = opnp(typed, "--help")
    assert outcome.code == 2
    assert f"No such command '{typed}'. Did you mean '{meant}'" in outcome.err
    assert "Usage: opnp [OPTIONS] COMMAND" in outcome.err


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("fit", "--out"),
        ("tune", "--features"),
        ("bench --features .", "--out"),
    ],
)
def test_a_missing_option_is_a_usage_error(opnp: Opnp, given: str, option: str) -> None:
    outcome = opnp(*given.split())
    assert outcome.code == 2
    assert f"Usage: opnp {given.split(maxsplit=1)[0]} [OPTIONS]" in outcome.err
    assert f"Missing option '{option}" in outcome.err


def test_the_version_is_printed(opnp: Opnp) -> None:
    assert done(opnp, "--version").out.startswith("opnp 0.")


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("opnp s", ["score", "sweep", "serve"]),
        ("opnp inspect --js", ["--json"]),
        ("opnp fit --rho-w", ["--rho-w-min", "--rho-w-max"]),
        ("opnp fit --scope ", ["layer", "class"]),
        ("opnp cache --he", ["--head-layer", "--help"]),
        ("opnp tune --val", ["--validation", "--val-ood"]),
        ("opnp nothing --js", []),
    ],
)
def test_bash_completes(opnp: Opnp, monkeypatch: pytest.MonkeyPatch, words: str, completed: list[str]) -> None:
    monkeypatch.setenv("_OPNP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    assert done(opnp).out.split() == completed


def test_zsh_completes_with_the_lines_of_the_help(opnp: Opnp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_OPNP_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "opnp t")
    assert '"tune":"Choose the four ratios,' in opnp().out


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bashrc"), ("zsh", ".zshrc")])
def test_completion_is_installed(
    opnp: Opnp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: str, file: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("shellingham.detect_shell", lambda: (shell, f"/bin/{shell}"))
    assert f"{shell} completion installed in {tmp_path}" in done(opnp, "--install-completion").out
    assert (tmp_path / file).is_file()
    assert f"_OPNP_COMPLETE=complete_{shell}" in done(opnp, "--show-completion").out


def test_it_runs_as_a_module_under_its_own_name(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "opnp", "--help"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split()[:4] == ["Usage:", "opnp", "[OPTIONS]", "COMMAND"]
    assert run.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["| :", ">&-", "<&- >&- 2>&-"])
def test_a_command_does_its_work_whatever_becomes_of_its_streams(tmp_path: Path, closed: str) -> None:
    write_cached(tmp_path)
    files = "--features train.safetensors --head head.safetensors --out d.safetensors"
    script = f"'{sys.executable}' -m opnp fit {files} {closed}"
    run = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (0, "")
    assert (tmp_path / "d.safetensors").is_file()
    assert all(
        line.startswith(("No --validation", "opnp: warning: The model answers")) for line in run.stderr.splitlines()
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out train.safetensors", "`--out` would write over train.safetensors, which is given as `features`"),
        ("--out link.safetensors", "`--out` would write over train.safetensors, which is given as `features`"),
        ("--out head.safetensors", "`--out` would write over head.safetensors, which is given as `head`"),
        ("--out new --checkpoint train.safetensors", "`--checkpoint` would write over train.safetensors"),
        ("--out new --checkpoint new", "`--checkpoint` names the file of `--out`, new"),
        ("--out new --report new", "`--report` names the file of `--out`, new"),
    ],
)
def test_a_fit_writes_over_nothing_that_it_was_given(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, message: str
) -> None:
    monkeypatch.chdir(write_cached(tmp_path))
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "train.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    given = f"fit --features train.safetensors --head head.safetensors --rho-w-min 0.1 {options}"
    assert message in refused(opnp, *given.split())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("demo", DEMO_FILES),
        ("bench --features features", BENCH_FILES),
        (
            "bench TINY --id test.safetensors --train train.safetensors --ood x=test.safetensors --methods energy",
            BENCH_FILES,
        ),
        ("sweep --features features", SWEEP_FILES),
        ("cache TINY --train train.safetensors", ("train.safetensors", "ood_x.safetensors", "odin.safetensors")),
    ],
)
def test_folders_of_results_lose_nothing_that_others_wrote(
    opnp: Opnp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, names: tuple[str, ...]
) -> None:
    """``opnp demo --out .`` once wrote over train.safetensors and all its neighbours."""
    monkeypatch.chdir(write_module(tmp_path))
    write_world(tmp_path / "features")
    for seed, name in enumerate(("train", "test")):
        write_tensors(tmp_path / f"{name}.safetensors", *class_images(8, seed=seed))
    for name in names:
        folder = tmp_path / f"of {name}"
        folder.mkdir()
        (folder / name).write_bytes(b"mine")
        message = refused(opnp, *line(given), "--out", folder)
        assert re.search(rf"of {name} holds {name}(, which opnp did not write| without source\.json)", message)
        assert [(path.name, path.read_bytes()) for path in folder.rglob("*")] == [(name, b"mine")]


@pytest.mark.parametrize(
    ("given", "is_told"),
    [
        ({"train": Path("train.safetensors"), "out": Path()}, True),  # the name of a file that is written there
        ({"ood": ["far=ood_far.safetensors"], "out": Path()}, True),
        ({"train": Path("train.safetensors"), "out": Path("features")}, False),
        ({"train": Path("images.safetensors"), "out": Path()}, False),
        ({"ood": ["far=images.safetensors"], "out": Path("images.safetensors")}, True),
        ({"features": Path(), "out": Path()}, False),
        ({"data": "\0", "out": Path("b.csv"), "keep": 0.95, "strict": True, "report": None}, False),
    ],
)
def test_what_is_read_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, object], is_told: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train.safetensors", "ood_far.safetensors", "images.safetensors"):
        (tmp_path / name).touch()
    if is_told:
        with pytest.raises(OptionError, match=r"`--out` would write over .*: name another\."):
            require_distinct_files(given)
    else:
        require_distinct_files(given)

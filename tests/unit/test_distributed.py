"""A process of its own: everything that ranks do together is nothing there."""

import pytest
import torch

from opnp.distributed import (
    Ranks,
    gathered,
    in_contact,
    launched,
    local_device,
    require_equal,
    row_part,
    summed,
    together,
)
from opnp.errors import DistributedError, OptionError


def test_a_process_of_its_own_is_the_first_of_one() -> None:
    alone = Ranks()
    assert (alone.is_first, alone.is_alone, str(alone)) == (True, True, "rank 0 of 1")
    assert alone.part(7) == (0, 7)
    assert alone.device == torch.device("cpu")


def test_alone_there_is_nothing_to_send() -> None:
    tensor = torch.ones(3)
    assert summed({"a": tensor}, Ranks())["a"] is tensor
    assert gathered(tensor, Ranks())[0] is tensor
    require_equal("anything", Ranks(), what="a word")
    with pytest.raises(OptionError, match="mine"), together(Ranks()):
        raise OptionError("mine")


@pytest.mark.parametrize(("rows", "rank", "world"), [(5, 2, 2), (5, -1, 2), (-1, 0, 1), (5, 0, 0)])
def test_a_part_that_there_is_not(rows: int, rank: int, world: int) -> None:
    with pytest.raises(OptionError, match="`rank` must lie in 0 to"):
        row_part(rows, rank=rank, world=world)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with launched() as ranks:
        assert ranks == Ranks()
    monkeypatch.setenv("RANK", "0")  # as schedulers set it for jobs of other kinds
    with launched() as ranks:
        assert ranks.is_alone
    with pytest.raises(OptionError, match="`timeout` must be a positive number"), launched(timeout=float("nan")):
        pass


def test_a_rank_without_the_others_says_where_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(DistributedError, match=r"Rank 1 of 2 did not find the others at 127\.0\.0\.1:1"),
        launched(timeout=1),
    ):
        pass


def test_cuda_is_the_device_of_the_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: made.append(device))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [local_device(device) for device in ("cuda", "cuda:1", "cpu")] == ["cuda:3", "cuda:1", "cpu"]
    monkeypatch.delenv("LOCAL_RANK")
    assert local_device("cuda") == "cuda"
    assert made == ["cuda:3", "cuda:1", "cpu", "cuda"]


@pytest.mark.parametrize(
    ("said", "lost"),
    [
        ("[Rank 0]: Ranks 1, 3 failed to pass monitoredBarrier in 30000 ms", "lost rank 1, 3 while"),
        (
            "\n Rank 2 received errors while waiting for send/recv from rank 0. Check",
            "lost rank 0 while",
        ),
        ("Connection closed by peer [127.0.0.1]:51942.", "lost another rank while"),
        ("", "lost another rank while"),
    ],
)
def test_what_torch_says_of_lost_ranks(said: str, lost: str) -> None:
    with pytest.raises(DistributedError, match=lost), in_contact(Ranks(rank=2, world=4), "adding up"):
        raise RuntimeError(said)

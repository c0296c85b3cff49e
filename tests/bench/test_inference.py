"""The inference benchmark runs, and its networks have the zeros that its rows name."""

import re

import pytest
import torch

from torchlasso.bench.inference import Zeros, main, network, quick


def test_the_quick_benchmark_prints_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick"])
    printed = capsys.readouterr().out
    assert "threads" in printed
    tables = printed.split("\n**")[1:]
    assert len(tables) == 2
    for table in tables:
        rows = re.findall(r"^\| ([^|]+?) \| ([\d.,]+) \|(.+)\|$", table, re.MULTILINE)
        assert [name for name, *_ in rows] == [str(zeros) for zeros in quick().patterns]
        assert all(len(rest.split("|")) == 7 for *_, rest in rows)


def test_the_network_has_the_zeros_that_were_asked_for() -> None:
    torch.manual_seed(0)
    model = network((200, 100, 50, 10), Zeros(0.9, 0.5))
    first, second, last = model[::2]
    assert int((first.weight == 0).all(dim=1).sum()) >= 50
    assert int((second.weight == 0).all(dim=0).sum()) >= 50
    assert int((last.weight == 0).all(dim=0).sum()) == 25
    alive = first.weight[50:]
    assert float((alive == 0).float().mean()) == pytest.approx(0.9, abs=0.02)
    assert not (last.weight[:, 25:] == 0).any()


def test_patterns_read_well() -> None:
    assert str(Zeros(0.9, 0.5)) == "90% scattered, 50% of the units dead"
    assert str(Zeros(0.8)) == "80% scattered"
    assert str(Zeros(0.0, 0.8)) == "80% of the units dead"

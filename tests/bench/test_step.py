"""The step benchmark runs, and its tables hold what they promise."""

import re

import pytest
import torch

from torchlasso.bench.step import main, medians, transformer_shapes

ROW = re.compile(r"^\| ([^|]+) \|((?: [\d.]+ \|)+)$", re.MULTILINE)


def test_the_quick_benchmark_prints_every_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick"])
    printed = capsys.readouterr().out
    assert "OMP_WAIT_POLICY" in printed
    tables = printed.split("\n**")[1:]
    assert len(tables) == 6
    for table, base in zip(tables, ["AdamW"] * 2 + ["SGD"] * 2 + ["", "AdamW"], strict=True):
        rows = [
            (name, [float(cell) for cell in cells.split(" |")[:-1]]) for name, cells in ROW.findall(table)
        ]
        assert len(rows) == table.count("\n|") - 2  # below the head and the rule, numbers only
        assert all(value >= 0 for _, values in rows for value in values)
        if base:
            assert rows[0][0].startswith(f"{base}(fused=True)")
            assert rows[0][1][-1] == 1.0


def test_the_ways_are_timed_in_turn() -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}
    times = medians(ways, 3)
    assert order == list("ab") * 5  # two rounds do not count
    assert set(times) == {"a", "b"}
    assert all(0 < seconds < 1 for seconds in times.values())


def test_the_transformer_has_the_size_that_the_page_says() -> None:
    shapes = transformer_shapes()
    assert len(shapes) == 86
    assert round(sum(torch.Size(shape).numel() for shape in shapes) / 1e6, 1) == 25.2

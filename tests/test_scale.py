"""The computed table of docs/scale.md is what the script prints, and its formula has the limits that it should."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.scale import NETWORKS, NUMBERS, WORKS, Network, Work, all_reduce_s, efficiency, fsdp_s, table

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def test_the_page_holds_what_the_script_prints() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), "put in what python -m benchmarks.scale prints"


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_one_gpu_is_whole_and_more_are_never_better(work: Work, network: Network, overlapped: bool) -> None:
    values = [efficiency(work, number, network, overlapped=overlapped) for number in NUMBERS]
    assert values[0] == 1.0
    assert all(more <= less if overlapped else more < less for less, more in pairwise(values))


def test_a_ring_moves_nearly_twice_the_bytes_and_fsdp_half_as_many_more() -> None:
    network = Network("without latency", 1e9, 1e9, 0.0, 0.0)
    assert all_reduce_s(1e9, 2, network) == pytest.approx(1.0)
    assert all_reduce_s(1e9, 1000, network) == pytest.approx(1.998)
    assert fsdp_s(1e9, 2, network) == pytest.approx(1.5)

"""Processes that start anew find each other and not those that have died, and gloo gets a way between machines."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from dltrain.errors import Lost
from dltrain.meeting import choose_interface, part_of_this_start


def met(store: Any, indices: list[int], timeout_s: float = 30.0) -> list[Any]:
    """Return the parts that processes of these indices, of two, get of the store; they start one after the other."""
    with ThreadPoolExecutor(len(indices)) as threads:
        return [*threads.map(lambda index: part_of_this_start(store, index, 2, timeout_s), indices)]


def test_each_start_has_a_part_of_its_own() -> None:
    store = dist.HashStore()
    first = met(store, [0, 1])
    first[0].set("key", "of the dead")
    assert first[1].get("key") == b"of the dead"
    with pytest.raises(Lost, match="not all of the 2 processes of this training have come in"):
        met(store, [0], 0.1)  # the name that the other had left is not enough
    for indices in ([0, 1], [1, 0]):
        again = met(store, indices)
        assert not again[0].check(["key"])
        again[0].set("key", "of the living")
        assert again[1].get("key") == b"of the living"


@pytest.mark.skipif(sys.platform != "linux", reason="the names of interfaces are looked up on Linux only")
def test_gloo_uses_the_interface_that_leads_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "of the user")
    store = dist.HashStore()
    choose_interface(store, 1, 2)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "of the user"
    for machine, master in ((1, "127.0.0.1"), (0, "leads.nowhere.invalid")):  # the first asks another machine
        monkeypatch.setenv("MASTER_ADDR", master)
        monkeypatch.delenv("GLOO_SOCKET_IFNAME")
        choose_interface(store, machine, 2)
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    choose_interface(store, 0, 1)
    assert "GLOO_SOCKET_IFNAME" not in os.environ

"""How the processes of a training find each other: those of one start among all that a store knows, and by which way.

torchrun leaves both open where there are several machines. A `store` is a torch.distributed.Store that all reach.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import struct
import sys
import time
import uuid
from typing import Any

from torch.distributed import distributed_c10d

from dltrain.errors import Lost

_PAUSE_S = 0.002
"""For each process, so that together they ask the store equally often however many they are."""
_SIOCGIFADDR = 0x8915


def part_of_this_start(store: Any, index: int, size: int, timeout_s: float) -> Any:
    """Return a part of the store that only the `size` processes share which are alive now; this is the one at `index`.

    torchrun keeps its store when it starts processes anew, and with it the addresses of those that have died. Its
    counts of restarts differ between machines. So each process has a name of its own, and all begin once each has read
    the same names: a process that has died reads none of a later one.

    Raises Lost if not all have come in time.
    """
    deadline = time.monotonic() + timeout_s
    keys = [f"name of {i}" for i in range(size)]
    store.set(keys[index], uuid.uuid4().hex[:16])
    names, readers = "", 0
    while readers < size:
        read = hashlib.sha256(b"".join(store.multi_get(keys))).hexdigest()
        readers = store.add(read, int(read != names))
        names = read
        if time.monotonic() > deadline:
            raise Lost(f"not all of the {size} processes of this training have come in {timeout_s:g} s")
        time.sleep(_PAUSE_S * size)
    return distributed_c10d.PrefixStore(names, store)


def choose_interface(store: Any, machine: int, num_machines: int) -> None:
    """Let gloo use the network interface that leads to the other machines, unless the user has named one.

    By itself it uses that of this machine's name, which on many machines leads to no other. IPv4 on Linux only.
    """
    if machine == 0 and num_machines > 1:  # its own address may be that of the loopback in its own eyes
        peer = store.get("an address of another machine").decode()
    else:
        peer = os.environ["MASTER_ADDR"]
    address = _own_address_towards(peer)
    if machine > 0:
        store.set("an address of another machine", address)
    if interface := _interface_of(address):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _own_address_towards(peer: str) -> str:
    """Return the address of this machine from which it would send to `peer`; "" where IPv4 leads to none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((peer, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return ""


def _interface_of(address: str) -> str:
    """Return the name of the interface that has this address; "" where none is found."""
    if sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""

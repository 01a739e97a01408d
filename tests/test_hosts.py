"""Two machines, as far as one can show it: two network namespaces that share the disk, each with a torchrun.

They belong to processes that end with the test, so nothing is left of them however it ends.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.small_runs import one_json, train, weights_of, write_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_curves")]

Hosts = tuple[list[str], list[str]]
"""The words before a command that let it run on the first machine and on the second."""
ADDRESSES = ("10.77.0.1", "10.77.0.2")
ELASTIC = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:29400"]
STATIC = ["--master-addr", ADDRESSES[0], "--master-port", "29400"]

OWN = """
import os
from pathlib import Path
from torch import nn


class Net(nn.Linear):
    '''Kills processes at step 6 of the life of one of them, once.'''

    calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 6 and os.environ.get('RANK') == 'KILLER' and not Path('killed').exists():
            Path('killed').touch()
            for process in (KILLED):
                os.kill(process, 9)
        return super().forward(x)
"""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with contextlib.ExitStack() as stack:
        try:
            yield _joined_by_a_cable(stack)
        except (FileNotFoundError, PermissionError) as error:
            pytest.skip(f"NOT TESTED: two hosts need root, network namespaces, unshare, nsenter and ip: {error}")


def _joined_by_a_cable(stack: contextlib.ExitStack) -> Hosts:
    """Return two hosts; raise PermissionError where the system does not let this process make any."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    holders = [stack.enter_context(subprocess.Popen(["unshare", "--net", "cat"], **options)) for _ in ADDRESSES]
    for holder in holders:
        assert holder.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            holder.stdin.write(b"\n")
            holder.stdin.flush()
        if not holder.stdout.readline():  # else it is within
            raise PermissionError(holder.stderr.read().decode())
    first, second = (["nsenter", f"--net=/proc/{holder.pid}/ns/net"] for holder in holders)
    ends = [["netns", str(holder.pid)] for holder in holders]
    _do("ip", "link", "add", "cable", *ends[0], "type", "veth", "peer", "name", "cable", *ends[1])
    for host, address in zip((first, second), ADDRESSES, strict=True):
        _do(*host, "ip", "address", "add", f"{address}/24", "dev", "cable")
        for device in ("lo", "cable"):
            _do(*host, "ip", "link", "set", device, "up")
    return first, second


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"{' '.join(words)}: {done.stderr}")


def write_training(folder: Path, rank: int, killed: str) -> None:
    """Write a training in which the process of `rank` kills those that the expression `killed` names."""
    (folder / "own.py").write_text(OWN.replace("KILLED", killed).replace("KILLER", str(rank)))
    write_config(folder, {"model": {"type": "own.py:Net"}, "train": {"checkpoint_every": "1 steps"}})


def fit_on(hosts: Hosts, folder: Path, *options: list[str]) -> tuple[subprocess.CompletedProcess[str], ...]:
    """Train on both hosts, one process on each; `options` are torchrun's, of the first host and of the second."""
    fit = ["--nnodes", "2", "-m", "dltrain", "fit", "small.yaml", "--resume", "auto", "--json", "--quiet"]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    with contextlib.ExitStack() as stack:
        started = [
            subprocess.Popen(
                [*host, *torchrun, *given, *fit],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for host, given in zip(hosts, options, strict=True)
        ]
        for process in started:
            stack.callback(_end, process)
        outputs = [process.communicate(timeout=400) for process in started]
    return tuple(
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    )


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()  # torchrun then ends what it has started, in half a minute at most
    process.communicate()


@pytest.mark.parametrize(("way", "rank"), [("elastic", 0), ("elastic", 1), ("static", 1)])
def test_a_training_goes_on_after_a_process_on_either_host_was_killed(
    way: str, rank: int, hosts: Hosts, tmp_path: Path
) -> None:
    write_training(tmp_path, rank, "os.getpid(),")
    elastic = [[*ELASTIC, "--local-addr", ADDRESSES[i], "--rdzv-conf", f"is_host={i == 0}"] for i in range(2)]
    static = [[*STATIC, "--node-rank", str(i)] for i in range(2)]
    options = elastic if way == "elastic" else static
    first, second = fit_on(hosts, tmp_path, *([*given, "--max-restarts", "3"] for given in options))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert one_json(first.stdout)["run"] == "runs/small/1"
    log = (tmp_path / "runs" / "small" / "1" / "log.txt").read_text()
    assert "resume at step 5 of 12 on 2 processes on cpu" in log
    for name, value in weights_of(train(tmp_path, {"model": {"type": "own.py:Net"}})).items():
        torch.testing.assert_close(value, weights_of(tmp_path / "runs" / "small" / "1")[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [0, 1])
def test_where_one_host_dies_the_other_ends_and_keeps_the_checkpoint(rank: int, hosts: Hosts, tmp_path: Path) -> None:
    """Its torchrun dies first, or it would start the process again."""
    write_training(tmp_path, rank, "os.getppid(), os.getpid()")
    results = fit_on(hosts, tmp_path, *([*STATIC, "--node-rank", str(i)] for i in range(2)))
    assert (results[rank].returncode, results[1 - rank].returncode) == (-signal.SIGKILL, 1)
    assert results[1 - rank].stderr.count("another process of this training does not answer any more") == 1
    assert (tmp_path / "runs" / "small" / "1" / "checkpoints" / "last.safetensors").exists()

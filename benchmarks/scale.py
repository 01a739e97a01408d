"""What the sum of the gradients costs on many GPUs, computed and not measured: `python -m benchmarks.scale`.

A step is the computing of one GPU and then a ring all-reduce. All that is assumed stands in WORKS and NETWORKS.
docs/scale.md holds what this prints.
"""

from __future__ import annotations

from dataclasses import dataclass

GPUS_PER_HOST = 8
NUMBERS = (1, 2, 4, 8, 16, 64, 256, 1024)
_BYTES_PER_PARAMETER = 4  # dltrain adds up float32, whatever the precision of the forward pass


@dataclass(frozen=True)
class Work:
    """What one GPU does in a step; it stays the same on any number of them, so batch_size grows with the number."""

    name: str
    num_parameters: float
    compute_s: float


@dataclass(frozen=True)
class Network:
    """The slowest link of the ring: within a host up to eight GPUs, between hosts above."""

    name: str
    within_bytes_per_s: float
    between_bytes_per_s: float
    """Of one GPU."""
    within_latency_s: float
    between_latency_s: float
    """Of one message to the next GPU."""


WORKS = (
    Work("ResNet-50", 25.6e6, 0.1),
    Work("language model of 1B", 1e9, 0.25),
)
NETWORKS = (
    Network("fast", 300e9, 40e9, 3e-6, 10e-6),
    Network("slow", 20e9, 1e9, 10e-6, 50e-6),
)


def all_reduce_s(num_bytes: float, number: int, network: Network) -> float:
    """Return the seconds of a ring all-reduce of `num_bytes` over `number` GPUs: 2 (N-1) messages of 1/N of them."""
    within = number <= GPUS_PER_HOST
    bytes_per_s = network.within_bytes_per_s if within else network.between_bytes_per_s
    latency_s = network.within_latency_s if within else network.between_latency_s
    return 2 * (number - 1) * (num_bytes / number / bytes_per_s + latency_s)


def fsdp_s(num_bytes: float, number: int, network: Network) -> float:
    """Return the seconds of what `train.parallel: fsdp` sends: two all-gathers and a reduce-scatter.

    Each is half of an all-reduce. The latency is that of one layer; more layers send more and smaller messages.
    """
    return 1.5 * all_reduce_s(num_bytes, number, network)


def efficiency(work: Work, number: int, network: Network, *, overlapped: bool = False) -> float:
    """Return samples a second and GPU, as a fraction (0..1) of those of one GPU alone.

    `overlapped` is the bound for sums that run wholly beside the computing, which dltrain does not do.
    """
    sum_s = all_reduce_s(_BYTES_PER_PARAMETER * work.num_parameters, number, network)
    step_s = max(work.compute_s, sum_s) if overlapped else work.compute_s + sum_s
    return work.compute_s / step_s


def table() -> str:
    """Return the inputs and the efficiencies as text in Markdown."""
    lines = ["Inputs:", ""]
    lines += [f"* {w.name}: {w.num_parameters:g} parameters, {w.compute_s:g} s of computing a step." for w in WORKS]
    lines += [
        f"* {n.name} network: {n.within_bytes_per_s / 1e9:g} GB/s and {n.within_latency_s * 1e6:g} us a message within "
        f"a host of {GPUS_PER_HOST} GPUs, {n.between_bytes_per_s / 1e9:g} GB/s and {n.between_latency_s * 1e6:g} us "
        "between hosts, for each GPU."
        for n in NETWORKS
    ]
    for work in WORKS:
        lines += ["", f"Computed, not measured: {work.name}", ""]
        lines.append(
            "| GPUs | " + " | ".join(f"{n.name}: sum | as it is | overlapped | fsdp sends" for n in NETWORKS) + " |"
        )
        lines.append("|---:|" + "---:|" * 4 * len(NETWORKS))
        lines += [_row(work, number) for number in NUMBERS]
    return "\n".join(lines) + "\n"


def _row(work: Work, number: int) -> str:
    cells = [f"{number:,}"]
    for network in NETWORKS:
        cells.append(f"{1000 * all_reduce_s(_BYTES_PER_PARAMETER * work.num_parameters, number, network):.1f} ms")
        cells += [f"{efficiency(work, number, network, overlapped=o):.1%}" for o in (False, True)]
        cells.append(f"{1000 * fsdp_s(_BYTES_PER_PARAMETER * work.num_parameters, number, network):.1f} ms")
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print(table(), end="")

"""Run a command and print what it took, as JSON: `python benchmarks/launcher.py COMMAND...`; exits as the command does.

A process of its own, and a small one: the kernel counts the memory of whoever starts a process as that process's peak.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main(command: list[str]) -> int:
    """Run, wait, print; return the exit code."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    began = time.perf_counter()
    process_id = os.posix_spawn(command[0], command, os.environ, file_actions=quiet)
    _, status, usage = os.wait4(process_id, 0)
    process_s = time.perf_counter() - began
    cpu_s = usage.ru_utime + usage.ru_stime
    print(json.dumps({"process_s": process_s, "cpu_s": cpu_s, "peak_mib": usage.ru_maxrss / 1024}))
    return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

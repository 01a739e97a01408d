"""A command `dltrain` for tests of shell lines, forked from a process that has torch loaded, a tenth of the work.

It has the arguments, the working directory, the environment and the streams of who calls it, who ends with its code;
but it draws no curves, which take longer than a small training, and a signal to who calls it does not reach it: for
these `small_runs.command`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dltrain.curves
import dltrain.sweep.sweep
from dltrain.cli import main
from dltrain.signals import die_with
from tests.small_runs import start_child

CALL = """
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [b"x"], [0, 1, 2])
    server.sendall(json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    code = server.recv(3)
sys.exit(int(code) if code else "the forked process died")
"""


@contextlib.contextmanager
def forked_command(folder: Path) -> Iterator[None]:
    """Context of a program dltrain in `folder`."""
    with tempfile.TemporaryDirectory(prefix="dltrain-") as short, socket.socket(socket.AF_UNIX) as listener:
        address = f"{short}/socket"  # has a hundred characters at most
        listener.bind(address)
        listener.listen()
        (folder / "call.py").write_text(CALL)
        program = folder / "dltrain"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {folder / "call.py"} {address} "$@"\n')
        program.chmod(0o755)
        tests = os.getpid()
        server = start_child(lambda: _serve(listener, tests))
        try:
            yield
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


def _serve(listener: socket.socket, tests: int) -> None:
    die_with(tests)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that have ended
    dltrain.curves.draw_curves = dltrain.sweep.sweep.draw_curves = lambda folder: None
    while True:
        caller, _ = listener.accept()
        start_child(lambda caller=caller: _answer(caller))
        caller.close()


def _answer(caller: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    streams = socket.recv_fds(caller, 1, 3)[1]
    with caller.makefile() as file:
        arguments, folder, variables = json.load(file)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = ["dltrain", *arguments]
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    code = 0
    try:
        main()
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    sys.stdout.flush()
    caller.sendall(str(code).encode())

"""Start programs as forks of a process that has imported their modules: imports take most of their time.

`python forked.py FD MODULE ...` is that process. It imports the modules, and forks for each request that
it reads from the socket with the file descriptor FD.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class ForkedProcess:
    """A started process, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, status: int, stdout: int) -> None:
        self._status = open(status)  # noqa: SIM115 (open until the process has ended)
        self.stdout = open(stdout)  # noqa: SIM115
        self.returncode: int | None = None
        self.pid = int(self._status.readline())
        os.set_blocking(status, False)

    def poll(self) -> int | None:
        """Return the exit code, -N if signal N ended the process, or None while it runs."""
        if self.returncode is None and (line := self._status.readline()):
            self.returncode = os.waitstatus_to_exitcode(int(line))
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """Read the output until no process has it open, and wait for the end of this process."""
        output = self.stdout.read()
        self.stdout.close()
        self.wait(timeout)
        return output, None

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """A process that has imported `modules`; it ends with the process that made this object."""

    def __init__(self, *modules: str) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno()), *modules],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def start(
        self, main: str, argv: Sequence[str], cwd: Path, environment: Mapping[str, str]
    ) -> ForkedProcess:
        """Fork a process that calls `module:function` with `argv` as sys.argv, and exits with its result."""
        status, status_end = os.pipe()
        output, output_end = os.pipe()
        request = {"main": main, "argv": [*argv], "cwd": str(cwd), "env": dict(environment)}
        # The file descriptors travel with the length, because a long request arrives in pieces.
        body = json.dumps(request).encode()
        socket.send_fds(self._socket, [len(body).to_bytes(8)], [status_end, output_end])
        self._socket.sendall(body)
        os.close(status_end)
        os.close(output_end)
        return ForkedProcess(status, output)


def _serve(connection: socket.socket) -> dict | None:
    """Fork for each request: return the request in the new process, and None at the end of the server."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        size, fds, _, _ = socket.recv_fds(connection, 8, 2)
        if not size:
            return None
        body = connection.recv(int.from_bytes(size), socket.MSG_WAITALL)
        if os.fork():
            for fd in fds:
                os.close(fd)
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.close()
        status, output = fds
        if pid := os.fork():
            os.close(output)
            os.write(status, b"%d\n" % pid)
            os.write(status, b"%d\n" % os.waitpid(pid, 0)[1])
            os._exit(0)
        os.close(status)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        return json.loads(body)


def _prepare(request: dict) -> None:
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv[:] = request["argv"]
    # The streams of the server remember whether its own output was a file.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    for name in sys.argv[2:]:
        import_module(name)
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    if request is not None:
        _prepare(request)
        module, function = request["main"].split(":")
        sys.exit(getattr(import_module(module), function)())

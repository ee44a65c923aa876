"""A command in the guest, for whoever wants to look inside: its files, its output as it comes, its exit status.

While it runs the host may send `{"op": "input", "data": base64 | null}` (null: end of input) and
`{"op": "signal", "number": 2}` on the same port (docs/facts.md, "Request `exec`").
"""

from __future__ import annotations

import binascii
import os
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .wire import Decoder, Frame

WORK = "/tmp"
_PATH = "/usr/bin:/usr/sbin:/bin:/sbin"
_CHUNK = 1 << 14
_CANNOT_RUN = 127  # what a shell says of a command it cannot start


class Execution:
    """One command. `port` and `decoder` are the server's, `send` sends a message to the host, `repl` runs Python's own
    prompt in the child when no command was given, `work` is where files go and the command runs. Use once.
    """

    def __init__(
        self, request: Frame, port: Any, decoder: Decoder, send: Callable[[dict[str, Any]], None],
        repl: Callable[[], None], work: str = WORK,
    ) -> None:  # fmt: skip
        self._request = request.message
        self._blob = request.blob
        self._port = port
        self._decoder = decoder
        self._send = send
        self._repl = repl
        self._work = work
        self._pid = 0
        self._input = -1

    def run(self) -> dict[str, Any]:
        """`{"type": "exit", "status": 0 | null, "signal": null | 9, "error": null | "text"}`."""
        try:
            self._write_files()
        except OSError as error:
            return _exit(error="%s: %s" % (error.filename, error.strerror))
        outputs = self._start_on_terminal() if self._request.get("terminal") else self._start()
        self._send({"type": "progress", "phase": "started"})
        self._pump(outputs)
        _, status = os.waitpid(self._pid, 0)
        if os.WIFSIGNALED(status):
            return _exit(signal=os.WTERMSIG(status))
        return _exit(status=os.WEXITSTATUS(status))

    def _write_files(self) -> None:
        offset = 0
        for item in self._request.get("files", ()):
            path = os.path.join(self._work, item["path"])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, item["mode"])
            try:
                view = memoryview(self._blob)[offset : offset + item["size"]]
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fchmod(descriptor, item["mode"])
            finally:
                os.close(descriptor)
            offset += item["size"]

    # -- starting

    def _start(self) -> dict[int, str]:
        """Fork with three pipes; the descriptors to read from, and what each is."""
        stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            self._become(stdin[0], stdout[1], stderr[1])
        for descriptor in (stdin[0], stdout[1], stderr[1]):
            os.close(descriptor)
        self._input = stdin[1]
        return {stdout[0]: "stdout", stderr[0]: "stderr"}

    def _start_on_terminal(self) -> dict[int, str]:
        """Fork with a terminal of its own."""
        from .libc import mount

        if not os.path.exists("/dev/pts/ptmx"):
            os.makedirs("/dev/pts", exist_ok=True)
            mount("devpts", "/dev/pts", 0)
        master, slave = os.openpty()
        self._pid = os.fork()
        if self._pid == 0:
            self._size(slave)
            self._become(slave, slave, slave)
        os.close(slave)
        self._input = master
        return {master: "stdout"}

    def _size(self, terminal: int) -> None:
        import fcntl
        import struct
        import termios

        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        rows, columns = self._request["terminal"]
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))

    def _become(self, stdin: int, stdout: int, stderr: int) -> None:
        """In the child: take the descriptors and run the command. Never returns."""
        try:
            for number, descriptor in enumerate((stdin, stdout, stderr)):
                os.dup2(descriptor, number)
            os.closerange(3, 1 << 10)
            os.chdir(self._work)
            argv = self._request.get("argv")
            if argv is None:
                self._repl()
                os._exit(0)
            if argv[0] in ("python", "python3"):
                argv = [sys.executable, *argv[1:]]
            os.execvpe(argv[0], argv, {**self._environment(), **self._request.get("env", {})})
        except OSError as error:
            os.write(2, ("corematrix: %s: %s\n" % ((self._request.get("argv") or ["?"])[0], error.strerror)).encode())
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(_CANNOT_RUN)

    def _environment(self) -> dict[str, str]:
        return {"PATH": self._work + ":" + _PATH, "HOME": self._work, "TERM": "dumb", "LC_ALL": "C.UTF-8"}

    # -- while it runs

    def _pump(self, outputs: dict[int, str]) -> None:
        """Pass output on until the last writer has closed it; take what the host sends meanwhile."""
        poll = select.poll()
        for descriptor in outputs:
            poll.register(descriptor, select.POLLIN)
        host = self._port.descriptor
        poll.register(host, select.POLLIN)
        while outputs:
            for descriptor, _ in poll.poll():
                if descriptor == host:
                    self._hear()
                elif not self._pass_on(descriptor, outputs[descriptor]):
                    poll.unregister(descriptor)
                    del outputs[descriptor]
                    os.close(descriptor)
                    if descriptor == self._input:
                        self._input = -1
        self._close_input()

    def _pass_on(self, descriptor: int, stream: str) -> bool:
        try:
            data = os.read(descriptor, _CHUNK)
        except OSError:  # EIO: the terminal's last user has gone
            return False
        if data:
            text = binascii.b2a_base64(data, newline=False).decode()
            self._send({"type": "progress", "phase": "exec", "stream": stream, "data": text})
        return bool(data)

    def _hear(self) -> None:
        self._decoder.feed(self._port.read())
        frame = self._decoder.take()
        while frame is not None:
            message = frame.message
            if message.get("op") == "signal":
                os.kill(self._pid, message["number"])
            elif message.get("op") == "input":
                self._feed(message["data"])
            frame = self._decoder.take()

    def _feed(self, data: str | None) -> None:
        if self._input < 0:
            return
        if data is None:
            self._close_input()
            return
        view = memoryview(binascii.a2b_base64(data))
        try:
            while view:
                view = view[os.write(self._input, view) :]
        except BrokenPipeError:
            self._close_input()

    def _close_input(self) -> None:
        if self._input >= 0 and not self._request.get("terminal"):
            os.close(self._input)
            self._input = -1


def _exit(**known: Any) -> dict[str, Any]:
    return {"type": "exit", "status": None, "signal": None, "error": None, **known}


def repl(machine: Any, work: str = WORK) -> None:
    """Python's prompt with the loader at hand."""
    import code
    from contextlib import suppress

    from . import judge

    names = {"machine": machine, "judge": judge.judge, "Machine": judge.Machine}
    names.update({"exit": sys.exit, "quit": sys.exit})  # which site.py would give, and it is not loaded here
    words = (
        "corematrix: kernel %s. `machine` is what the loader knows of it (machine.features, machine.btf),\n"
        "`judge(machine, data, request, print)` loads an object. Files given are in %s." % (os.uname().release, work)
    )
    with suppress(SystemExit):
        code.interact(words, None, names, "")

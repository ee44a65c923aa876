"""PID 1 in a guest; elsewhere a command: `python3 -m harness.guest judge OBJECT` prints the facts this machine's
kernel gives.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> int:
    """Run as what we are; returns the exit status of the command."""
    if os.getpid() == 1:
        as_init()
        return 0
    return as_command(sys.argv[1:])


def as_init() -> None:
    """A guest's whole life. Whatever goes wrong is told on the console before the power goes off: the host keeps that
    as evidence.
    """
    from . import init

    try:
        init.mount_all()
        for complaint in init.insert_modules():
            sys.stderr.write("corematrix: module %s\n" % complaint)
        _serve(init)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        sys.stderr.write("corematrix: PID 1 failed: %s: %s\n" % (type(error).__name__, error))
    init.power_off()


def _serve(init: Any) -> None:
    from .server import Server

    port = init.open_port()
    release = os.uname().release
    machine = _survey(btf_path="/boot/vmlinux-" + release, kconfig_path="/boot/config-" + release)
    Server(port, machine).serve()


def _survey(btf_path: str, kconfig_path: str) -> Any:
    from .judge import Machine

    def existing(path: str) -> str | None:
        return path if os.path.exists(path) else None

    return Machine.survey(btf_path=existing(btf_path), kconfig_path=existing(kconfig_path))


def as_command(words: list[str]) -> int:
    """`judge OBJECT [--loader python|libbpf] [--btf FILE] [--kconfig FILE]`: facts as JSON on standard output.
    `serve [--btf FILE] [--kconfig FILE] [--port NAME]`: frames on standard input and output, or on a virtio port.
    """
    import argparse

    from .judge import Machine, judge
    from .quick_json import dumps

    parser = argparse.ArgumentParser(prog="python3 -m harness.guest", description=__doc__)
    parser.add_argument("verb", choices=["judge", "serve"])
    parser.add_argument("object", nargs="?")
    parser.add_argument("--loader", choices=["python", "libbpf"], default="python")
    parser.add_argument("--btf")
    parser.add_argument("--kconfig")
    parser.add_argument("--port", help="serve: a virtio-serial port, by name")
    options = parser.parse_args(words)
    if options.verb == "serve":
        from .command import serve

        serve(options.btf, options.kconfig, options.port)
        return 0
    if options.object is None:
        parser.error("judge: no OBJECT")
    with open(options.object, "rb") as file:
        data = file.read()
    machine = Machine.survey(btf_path=options.btf, kconfig_path=options.kconfig)
    request = {"op": "judge", "name": options.object, "loader": options.loader, "settings": {}, "progs": None,
               "skip_progs": [], "evidence": True, "rules": None}  # fmt: skip
    facts = judge(machine, data, request, lambda _message: None)
    sys.stdout.write(dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

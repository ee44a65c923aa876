"""Rows of kernels.yaml that name a machine instead of a kernel to boot (`backend: local | ssh`); docs/backends.md has
the keys. Relative paths count from the directory of kernels.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from harness.model.arch import ARCHITECTURES
from harness.model.kernel import KernelSpec
from harness.model.machines import MACHINE_VARIANT, LocalSource, SshSource, SshTarget, parse_target
from harness.yaml_node import Node

_KEYS = ("id", "arch", "variant", "backend", "ssh", "tags")
_SSH_KEYS = ("host", "user", "port", "key", "known_hosts", "jump", "sudo", "python")
_PLACE = re.compile(r"(?:[A-Za-z0-9._-]+@)?vsock/[0-9]+|[A-Za-z0-9._:@\[\],-]+")
MACHINES = ("local", "ssh")


def names_machine(node: Node) -> bool:
    """Whether this row of `kernels:` is for us."""
    return isinstance(node.value, dict) and node.value.get("backend") in MACHINES


def machine_row(node: Node, identity: Callable[[Node], str]) -> KernelSpec:
    """The row; `identity` reads its id. ConfigError."""
    backend = node.value["backend"]
    required = ("id", "arch", "backend", *(("ssh",) if backend == "ssh" else ()))
    entries = node.mapping(_KEYS, required=required)
    if backend == "local" and "ssh" in entries:
        entries["ssh"].fail("does not go with `backend: local`")
    return KernelSpec(
        id=identity(entries["id"]),
        arch=ARCHITECTURES[entries["arch"].choice(ARCHITECTURES)],
        variant=entries["variant"].text() if "variant" in entries else MACHINE_VARIANT,
        source=_ssh(entries["ssh"]) if backend == "ssh" else LocalSource(),
        tags=frozenset(entries["tags"].texts()) if "tags" in entries else frozenset(),
        backend=backend,
    )


def _ssh(node: Node) -> SshSource:
    entries = node.mapping(_SSH_KEYS, required=("host",))
    target = SshTarget(
        host=_place(entries["host"]),
        user=entries["user"].text() if "user" in entries else None,
        port=entries["port"].integer(least=1) if "port" in entries else None,
        key=_path(entries["key"]) if "key" in entries else None,
        known_hosts=_path(entries["known_hosts"]) if "known_hosts" in entries else None,
        jump=parse_target(_place(entries["jump"])) if "jump" in entries else None,
    )
    sudo = "sudo" in entries and entries["sudo"].truth()
    return SshSource(target=target, sudo=sudo, python=entries["python"].text() if "python" in entries else "python3")


def _place(node: Node) -> str:
    text = node.text()
    if not _PLACE.fullmatch(text) or text.startswith("-"):
        node.fail(f"{text!r} is no machine", remedy="[user@]host[:port]")
    return text


def _path(node: Node) -> Path:
    return (Path(node.file).parent / Path(node.text()).expanduser()).absolute()

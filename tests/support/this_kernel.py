"""This machine's kernel as a place to load programs, for tests that need root and bpf(2)."""

from __future__ import annotations

import base64
import errno
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from harness.guest.judge import Machine, judge
from harness.guest.syscall import Bpf


@functools.lru_cache(maxsize=1)
def machine() -> Machine:
    """This kernel, surveyed once; skips the calling test where it cannot be asked."""
    if os.geteuid() != 0:
        pytest.skip("needs root: bpf(2)")
    try:
        found = Machine.survey()
    except OSError as error:
        pytest.skip(f"bpf(2) does not work here: {error}")
    if not found.features["prog_name"] or found.btf is None:
        pytest.skip("this kernel lets us load no programs, or has no BTF")
    return found


def facts_of(data: bytes, on: Machine | None = None, **request: Any) -> dict[str, Any]:
    """The facts our loader reports for an object on this kernel."""
    asked = {"op": "judge", "name": "object.bpf.o", "loader": "python", "settings": {}, "evidence": True, **request}
    return judge(on or machine(), data, asked, lambda _message: None)


def prog_of(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One program's facts."""
    return next(prog for prog in facts["progs"] if prog["name"] == name)


def code_of(prog: Mapping[str, Any]) -> bytes:
    """The program's final instructions."""
    return base64.b64decode(prog["insns"])


def numbers(ranges: list[list[int]] | None) -> set[int]:
    """The instructions in half-open ranges."""
    return {n for start, end in ranges or [] for n in range(start, end)}


class DenyingBpf(Bpf):
    """A kernel with less: each call is shown to `deny`, whose errno (or 0: let it pass) is the answer."""

    def __init__(self, deny: Callable[[int, bytes], int]) -> None:
        super().__init__()
        self._deny = deny
        self.denied: list[int] = []

    def call(self, command: int, attr: bytes | bytearray) -> int:
        number = self._deny(command, bytes(attr))
        if number:
            self.denied.append(command)
            raise OSError(number, errno.errorcode.get(number, "?"))
        return super().call(command, attr)

"""The object a guest judges before it is saved is what its source says."""

from __future__ import annotations

from pathlib import Path

from harness import payload
from tests.support.objects import ROOT, compile_object, core_relos


def test_the_shipped_object_has_the_relocations_of_its_source(tmp_path: Path) -> None:
    shipped = tmp_path / "shipped.o"
    shipped.write_bytes(payload.warm_object())
    built = compile_object(ROOT / "harness/warm/warm.bpf.c", tmp_path / "built.o", "-mcpu=v1")
    assert core_relos(built), "nothing was compared"
    assert core_relos(shipped) == core_relos(built)

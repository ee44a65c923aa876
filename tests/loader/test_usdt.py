"""USDT probes of a program made here, on this kernel: libbpf finds them by the binary's notes and attaches, and ours by
its own reading of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import usdt
from tests.support.this_kernel import facts_of, machine, prog_of


@pytest.mark.parametrize("loader", ["python", "libbpf"])
def test_usdt(loader: str, tmp_path: Path) -> None:
    machine()
    built = usdt.build_object(tmp_path, str(usdt.build_tool(tmp_path)))
    facts = facts_of(built.read_bytes(), attach=True, evidence=False, loader=loader)
    there, counted, gone = (prog_of(facts, name)["attach"] for name in ("there", "counted", "gone"))
    assert (there["status"], counted["status"], there["stand_in"]) == ("attached", "attached", None)
    assert there["how"].startswith("bpf_program__attach()" if loader == "libbpf" else "uprobe events")
    assert (gone["status"], gone["errno"]) == ("refused", 2)
    assert "stopped" in gone["error"]

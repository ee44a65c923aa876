"""Kernel modules whose start is a fault: no headers and no build tree, `struct module` is laid out by the kernel's BTF.

What such a module needs (kernel/module/main.c): .modinfo with a license, and .gnu.linkonce.this_module, a struct module
of the right size in which only the name and the pointer to the start are set. It has no symbol versions and no
vermagic, so it is loaded by force (MODULE_INIT_IGNORE_*, CONFIG_MODULE_FORCE_LOAD).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.guest import btf
from tests.support.objects import clang

# The start of each, x86_64 (AT&T syntax); none of them comes back.
STARTS = {
    "oops": "movq 0x10, %rax",  # a read through a null pointer
    "bug": "ud2",
    "spin": "1: jmp 1b",
}

_SOURCE = """
.section .modinfo,"a"
.asciz "license=GPL"
.asciz "name=faulty"
.text
.type start, @function
start: endbr64
{start}
ret
.size start, . - start
.section .gnu.linkonce.this_module,"aw"
this: .org this + {name}
.asciz "faulty"
.org this + {init}
.quad start
.org this + {size}
.section .note.GNU-stack,""
"""


def build(name: str, btf_file: Path, place: Path) -> bytes:
    """The module `name` of STARTS for the kernel with that BTF; `place` is a directory for the compiler."""
    types = btf.load(str(btf_file))
    id_ = types.find("module", btf.KIND_NAMES.index("struct"))
    assert id_ is not None
    module = types.type(id_)
    at = {name: bit // 8 for name, _type, bit, _bits in types.members(module)}
    layout = {"name": at["name"], "init": at["init"], "size": module.size}
    (place / "faulty.S").write_text(_SOURCE.format(start=STARTS[name], **layout))
    words = [clang(), "--target=x86_64-linux-gnu", "-c", str(place / "faulty.S"), "-o", str(place / "faulty.ko")]
    subprocess.run(words, check=True)
    return (place / "faulty.ko").read_bytes()

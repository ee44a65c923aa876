"""Small parts of the facts that do not need a Load: rows, figures, values."""

from __future__ import annotations

from .btf import BTF_KIND_ARRAY, BTF_KIND_DATASEC, BTF_KIND_VAR
from .errors import GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .bpf_object import BpfObject, Prog
    from .btf import Btf
    from .libbpf_debug_log import DebugLog
    from .libbpf_doors import Verdict

# enum bpf_core_relo_kind (UAPI bpf.h), in libbpf's words (core_relo_kind_str)
CORE_KINDS = dict(enumerate(
    "byte_off byte_sz field_exists signed lshift_u64 rshift_u64 local_type_id target_type_id type_exists type_size "
    "enumval_exists enumval_value type_matches".split()
))  # fmt: skip


def extern_rows(log: DebugLog) -> list[dict[str, Any]]:
    """One row for each extern libbpf knows of."""
    return [
        {"name": name, "kind": said["kind"], "type": None, "value": said["value"], "weak": said["weak"],
         "outcome": said["outcome"], "reason": said["reason"]}
        for name, said in log.externs.items()
    ]  # fmt: skip


def verifier_figures(log: str) -> dict[str, int] | None:
    return None


def source_of(file: BpfObject | None, func: Prog, insn: int) -> dict[str, Any] | None:
    return None


def evidence_of(
    machine: Any, entry: dict[str, Any], verdict: Verdict, lines: list[dict[str, Any]],
    progress: Callable[[dict[str, Any]], None], seconds: dict[str, float],
) -> dict[str, Any] | None:  # fmt: skip
    return None


def setting_bytes(btf: Btf, name: str, text: str) -> tuple[str, int, bytes]:
    """Where a read-only variable lies and what to write there: section, offset, bytes. GuestError when there is none."""
    for id_ in range(1, btf.count):
        if btf.kind(id_) != BTF_KIND_DATASEC or not btf.type(id_).name.startswith(".rodata"):
            continue
        for var, offset, size in btf.datasec(btf.type(id_)):
            if btf.kind(var) == BTF_KIND_VAR and btf.type(var).name == name:
                return btf.type(id_).name, offset, _encoded(btf, btf.type(var).type, text, size, name)
    raise GuestError("no read-only variable '%s' in the object" % name)


def _encoded(btf: Btf, type_id: int, text: str, size: int, name: str) -> bytes:
    """The value in the variable's own bytes: numbers (any base), true and false, or text for char arrays."""
    if btf.skip_mods_and_typedefs(type_id).kind == BTF_KIND_ARRAY:
        data = text.encode()
        if len(data) >= size:
            raise GuestError("value of '%s' is longer than %d bytes" % (name, size - 1))
        return data.ljust(size, b"\0")
    value = {"true": 1, "false": 0}.get(text)
    if value is None:
        value = int(text, 0)
    return (value & ((1 << (8 * size)) - 1)).to_bytes(size, btf.byteorder)

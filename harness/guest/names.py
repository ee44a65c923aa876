"""Names as CO-RE compares them."""

from __future__ import annotations


def essential_name(name: str) -> str:
    """A name without its flavor (bpf_core_essential_name_len): cut at the last `X___Y` with X and Y not underscores."""
    at = name.rfind("___")
    while at > 0:
        if name[at - 1] != "_" and name[at + 3 : at + 4] not in ("", "_"):
            return name[:at]
        at = name.rfind("___", 0, at + 2)
    return name

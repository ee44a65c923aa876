"""Which model a kernel's verifier follows, from its BTF."""

from __future__ import annotations

from harness.guest.btf import BTF_KIND_STRUCT, Btf
from harness.predict.models import Model, model_of


def model_from(btf: Btf) -> Model:
    """The rules whose markers the BTF holds. MalformedBtf when it is damaged just there."""

    def has(struct: str, member: str | None) -> bool:
        id_ = btf.find(struct, BTF_KIND_STRUCT)
        if id_ is None:
            return False
        return member is None or any(name == member for name, *_ in btf.members(btf.type(id_)))

    return model_of(has)

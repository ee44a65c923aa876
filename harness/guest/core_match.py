"""Which target types a local type may stand for: candidates, compatibility, matching (libbpf relo_core.c).

Every function takes the local side first. A Matcher serves one object; its `why` tells people about the last refusal.
"""

from __future__ import annotations

from .btf import (
    BTF_INT_SIGNED,
    BTF_KIND_ARRAY,
    BTF_KIND_ENUM,
    BTF_KIND_ENUM64,
    BTF_KIND_FLOAT,
    BTF_KIND_FUNC_PROTO,
    BTF_KIND_FWD,
    BTF_KIND_INT,
    BTF_KIND_PTR,
    BTF_KIND_STRUCT,
    BTF_KIND_UNION,
    BTF_KIND_UNKN,
    KIND_NAMES,
    Btf,
    Type,
)
from .core_spec import (
    BPF_CORE_SPEC_MAX_LEN,
    BPF_CORE_TYPE_MATCHES,
    COMPOSITES,
    ENUM_KINDS,
    ENUMS,
    TYPE_KINDS,
    Spec,
    is_flexible,
)
from .errors import E2BIG, EINVAL, CoreError
from .names import essential_name

MAX_DEPTH = 32
_WORK_LIMIT = (
    20_000_000  # comparisons for one object, seconds; libbpf has no bound, and 2**32 of them fit into a small file
)

_ITS_MEMBER = "its member"
_NAMED_ONLY = (BTF_KIND_UNKN, BTF_KIND_STRUCT, BTF_KIND_UNION, BTF_KIND_ENUM, BTF_KIND_ENUM64, BTF_KIND_FWD)


def kinds_are_compat(local: int, target: int) -> bool:
    """btf_kind_core_compat(): the same kind, or both enums of whatever width."""
    return local == target or (local in ENUMS and target in ENUMS)


def names_match(local: str, target: str) -> bool:
    """bpf_core_names_match(): equal without flavors; an empty name only matches an empty one."""
    return local == target if not (local and target) else essential_name(local) == essential_name(target)


def find_candidates(local: Type, btf: Btf) -> list[int]:
    """Ids in `btf` (its own ones, rising) that may be what `local` means (bpf_core_add_cands)."""
    return [
        id_
        for id_ in btf.ids_by_essential_name(essential_name(local.name))
        if kinds_are_compat(local.kind, btf.kind(id_))
    ]


class Matcher:
    """Compares types of a local BTF with those of one target BTF."""

    def __init__(self, local: Btf, target: Btf) -> None:
        self.local = local
        self.target = target
        self.why: str | None = None
        self._work = 0

    def _no(self, why: str) -> bool:
        self.why = why
        return False

    def _count_work(self, amount: int = 1) -> None:
        self._work += amount
        if self._work > _WORK_LIMIT:
            raise CoreError("types are too entangled to compare", EINVAL, "too_deep")

    def _too_deep(self) -> CoreError:
        return CoreError(f"types are nested more than {MAX_DEPTH} levels deep", EINVAL, "too_deep")

    def _too_many_steps(self) -> CoreError:
        return CoreError(f"target needs more than {BPF_CORE_SPEC_MAX_LEN} steps", E2BIG, "too_deep")

    # -- a spec against one candidate

    def match(self, local: Spec, target_id: int) -> Spec | None:
        """The target spec in candidate `target_id`, None when it does not match (bpf_core_spec_match). CoreError is
        fatal.
        """
        spec = Spec(self.target, target_id, local.kind)
        if local.kind in TYPE_KINDS:
            compare = self.types_match if local.kind == BPF_CORE_TYPE_MATCHES else self.types_are_compat
            return spec if compare(local.root_id, target_id) else None
        if local.kind in ENUM_KINDS:
            return spec if self._match_enumerator(local, spec) else None
        return spec if self._match_field(local, spec) else None

    def _match_enumerator(self, local: Spec, spec: Spec) -> bool:
        t = self.target.skip_mods_and_typedefs(spec.root_id)
        if t.kind not in ENUMS:
            return self._no(f"is {_article(t)}, not an enum")
        wanted = essential_name(local.accessors[0][2] or "")
        for index, (name, _) in enumerate(self.target.enumerators(t)):
            if essential_name(name) == wanted:
                spec.accessors.append((t.id, index, name))
                spec.raw.append(index)
                return True
        return self._no(f"has no enumerator '{wanted}'")

    def _match_field(self, local: Spec, spec: Spec) -> bool:
        btf, here = self.target, spec.root_id
        for at, accessor in enumerate(local.accessors):
            t = btf.skip_mods_and_typedefs(here)
            if accessor[2]:
                self.why = None
                found = self._match_member(accessor, t, spec)
                if found is None:
                    return self._no(self.why or self._no_member(accessor[2], t, spec))
                here = found
                continue
            here = t.id
            if at:
                if t.kind != BTF_KIND_ARRAY:
                    return self._no(f"is {_article(t)} where an array is expected")
                element, _, elements = btf.array(t)
                # u32 comparison: a negative index, possible up to libbpf 1.7.0, is out of bounds
                if not is_flexible(btf, spec.accessors[-1], elements) and not 0 <= accessor[1] < elements:
                    return self._no(f"its array has {elements} elements, index {accessor[1]} is outside")
                here = btf.skip_mods_and_typedefs(element).id
            self._step(spec, accessor[1])
            spec.accessors.append((here, accessor[1], None))
            spec.advance(accessor[1] * btf.resolve_size(here) * 8)
        return True

    def _step(self, spec: Spec, index: int) -> None:
        if len(spec.raw) == BPF_CORE_SPEC_MAX_LEN:
            raise self._too_many_steps()
        spec.raw.append(index)

    def _match_member(self, local: tuple[int, int, str | None], t: Type, spec: Spec) -> int | None:
        """Find the member in struct or union `t`, looking into anonymous ones; its type id, or None
        (bpf_core_match_member).

        A member of that name and another type ends the search where it stands: there is no second chance further down.
        """
        if t.kind not in COMPOSITES:
            path = _path(spec)
            here = f"has in '{path}' {_article(t)}" if path else f"is {_article(t)}"
            self.why = f"{here} where a struct or union with member '{local[2]}' is expected"
            return None
        if t.vlen and len(spec.raw) == BPF_CORE_SPEC_MAX_LEN:
            raise self._too_many_steps()
        self._count_work(t.vlen)
        for index, (name, type_id, bits, _) in enumerate(self.target.members(t)):
            if name and name != local[2]:
                continue
            self._step(spec, index)
            spec.advance(bits)
            if name:
                return self._accept_member(local, t, index, type_id, spec)
            inner = self.target.skip_mods_and_typedefs(type_id)
            found = self._match_member(local, inner, spec) if inner.kind in COMPOSITES else None
            if found is not None:
                return found
            spec.advance(-bits)
            spec.raw.pop()
        return None

    def _no_member(self, wanted: str, t: Type, spec: Spec) -> str:
        """For people: `t`, where the path has led so far, has no such member; which it has that are called much like
        it (`state` and `__state`). Where it is not the root it is named.
        """
        names = (name for name, _, _, _ in self.target.members(t) if len(name) > 1 and name != wanted)
        near = [f"'{name}'" for name in names if wanted in name or name in wanted][:3]
        has = f" (it has {', '.join(near)})" if near else ""  # in these words: a sweep leaves them out (answers.py)
        path = _path(spec)
        owner = f"{KIND_NAMES[t.kind]} {t.name}" if t.name else f"an anonymous {KIND_NAMES[t.kind]}"
        return f"has no member '{wanted}'" + (f" in '{path}' ({owner})" if path else "") + has

    def _accept_member(
        self, local: tuple[int, int, str | None], t: Type, index: int, type_id: int, spec: Spec
    ) -> int | None:
        local_type = self.local.members(self.local.type(local[0]))[local[1]][1]
        spec.accessors.append((t.id, index, local[2]))
        if self.fields_are_compat(local_type, type_id):
            return type_id
        if self.why and self.why.startswith(_ITS_MEMBER):
            self.why = f"{_ITS_MEMBER} '{_path(spec)}'{self.why[len(_ITS_MEMBER) :]}"
        return None

    # -- fields (bpf_core_fields_are_compat)

    def fields_are_compat(self, local_id: int, target_id: int) -> bool:
        """Whether a member of type `local_id` may be read from one of type `target_id`."""
        for _ in range(MAX_DEPTH * 4):
            local, target = self.local.skip_mods_and_typedefs(local_id), self.target.skip_mods_and_typedefs(target_id)
            if local.kind in COMPOSITES and target.kind in COMPOSITES:
                return True
            if not kinds_are_compat(local.kind, target.kind):
                return self._no(f"{_ITS_MEMBER} is {_article(target)}, the program expects {_article(local)}")
            if local.kind != BTF_KIND_ARRAY:
                return self._scalars_are_compat(local, target)
            local_id, target_id = self.local.array(local)[0], self.target.array(target)[0]
        raise self._too_deep()

    def _scalars_are_compat(self, local: Type, target: Type) -> bool:
        if local.kind in (BTF_KIND_PTR, BTF_KIND_FLOAT):
            return True
        if local.kind in (BTF_KIND_FWD, BTF_KIND_ENUM, BTF_KIND_ENUM64):
            if not local.name or not target.name or essential_name(local.name) == essential_name(target.name):
                return True
            return self._no(f"{_ITS_MEMBER} is {target!r}, the program expects {local!r}")
        if local.kind == BTF_KIND_INT:
            return self._no_int_offset(local, target)
        return self._no(f"{_ITS_MEMBER} is {_article(target)}")

    def _no_int_offset(self, local: Type, target: Type) -> bool:
        """Integers with an offset inside are a form of bitfield from before 2019; nothing else about an int counts
        here.
        """
        if self.local.int_data(local)[1] or self.target.int_data(target)[1]:
            return self._no("is an int with a bit offset")
        return True

    # -- types by kind (__bpf_core_types_are_compat)

    def types_are_compat(self, local_id: int, target_id: int, level: int = MAX_DEPTH) -> bool:
        """Whether two types have the same shape of pointers, arrays and functions; names and members do not count."""
        local, target = self.local.type(local_id), self.target.type(target_id)
        if not kinds_are_compat(local.kind, target.kind):
            return self._no(f"is {_article(target)}, the program expects {_article(local)}")
        for _ in range(MAX_DEPTH):
            self._count_work()
            local, target = self.local.skip_mods_and_typedefs(local_id), self.target.skip_mods_and_typedefs(target_id)
            kind = local.kind
            if not kinds_are_compat(kind, target.kind):
                return self._no(f"is {_article(target)}, the program expects {_article(local)}")
            if kind in _NAMED_ONLY:
                return True
            if kind == BTF_KIND_INT:
                return self._no_int_offset(local, target)
            if kind == BTF_KIND_ARRAY:
                local_id, target_id = self.local.array(local)[0], self.target.array(target)[0]
            elif kind == BTF_KIND_PTR:
                local_id, target_id = local.type, target.type
            elif kind == BTF_KIND_FUNC_PROTO:
                if not self._params_are_compat(local, target, level):
                    return False
                local_id, target_id = local.type, target.type
            else:
                return self._no(f"is {_article(target)}: libbpf compares no such types")
        raise self._too_deep()

    def _params_are_compat(self, local: Type, target: Type, level: int) -> bool:
        if local.vlen != target.vlen:
            return self._no(f"is a function of {target.vlen} parameters, the program expects {local.vlen}")
        for (_, local_id), (_, target_id) in zip(self.local.params(local), self.target.params(target)):
            if level <= 0:
                raise self._too_deep()
            mine, other = self.local.skip_mods_and_typedefs(local_id), self.target.skip_mods_and_typedefs(target_id)
            if not self.types_are_compat(mine.id, other.id, level - 1):
                return False
        return True

    # -- types in full (__bpf_core_types_match)

    def types_match(self, local_id: int, target_id: int, behind_ptr: bool = False, level: int = MAX_DEPTH) -> bool:
        """Whether a local type is a faithful part of a target type: names, members, sizes; behind a pointer only names
        and kind.
        """
        if level <= 0:
            raise self._too_deep()
        for _ in range(MAX_DEPTH):
            self._count_work()
            local, target = self.local.skip_mods_and_typedefs(local_id), self.target.skip_mods_and_typedefs(target_id)
            if not names_match(local.name, target.name):
                return self._no(f"{target!r} is not named like {local!r}")
            kind = local.kind
            if kind not in (BTF_KIND_PTR, BTF_KIND_ARRAY, BTF_KIND_FUNC_PROTO):
                return self._ends_match(local, target, behind_ptr, level)
            if kind != target.kind:
                return self._differ(local, target)
            if kind == BTF_KIND_PTR:
                behind_ptr = True
                local_id, target_id = local.type, target.type
            elif kind == BTF_KIND_ARRAY:
                local_id, _, local_elements = self.local.array(local)
                target_id, _, elements = self.target.array(target)
                if local_elements != elements:
                    return self._no(f"its array has {elements} elements, the program expects {local_elements}")
            else:
                if not self._params_match(local, target, behind_ptr, level):
                    return False
                local_id, target_id = local.type, target.type
        raise self._too_deep()

    def _differ(self, local: Type, target: Type) -> bool:
        return self._no(f"{target!r} is {_article(target)}, the program expects {_article(local)}")

    def _params_match(self, local: Type, target: Type, behind_ptr: bool, level: int) -> bool:
        if local.vlen != target.vlen:
            return self._no(f"is a function of {target.vlen} parameters, the program expects {local.vlen}")
        pairs = zip(self.local.params(local), self.target.params(target))
        return all(self.types_match(mine[1], other[1], behind_ptr, level - 1) for mine, other in pairs)

    def _ends_match(self, local: Type, target: Type, behind_ptr: bool, level: int) -> bool:
        """The types at which a chain of pointers, arrays and functions ends."""
        kind = local.kind
        if kind == BTF_KIND_UNKN:
            return target.kind == kind or self._differ(local, target)
        if kind == BTF_KIND_INT:
            return self._ints_match(local, target)
        if kind in ENUMS:
            return self._enums_match(local, target) if target.kind in ENUMS else self._differ(local, target)
        if kind in COMPOSITES:
            if target.kind == kind:
                return behind_ptr or self._composites_match(local, target, level)
            declared = behind_ptr and target.kind == BTF_KIND_FWD and bool(target.kflag) == (kind == BTF_KIND_UNION)
            return declared or self._differ(local, target)
        if kind == BTF_KIND_FWD:
            if target.kind == kind:
                return local.kflag == target.kflag or self._no(f"{target!r} declares the other of struct and union")
            wanted = BTF_KIND_UNION if local.kflag else BTF_KIND_STRUCT
            return (behind_ptr and target.kind == wanted) or self._differ(local, target)
        return self._no(f"{local!r}: libbpf matches no such types")

    def _ints_match(self, local: Type, target: Type) -> bool:
        if target.kind != BTF_KIND_INT:
            return self._differ(local, target)
        local_sign = self.local.int_data(local)[0] & BTF_INT_SIGNED
        target_sign = self.target.int_data(target)[0] & BTF_INT_SIGNED
        if local.size == target.size and local_sign == target_sign:
            return True
        return self._no(
            f"{target!r} has {target.size} bytes, signed {target_sign};"
            f" the program expects {local.size}, signed {local_sign}"
        )

    def _enums_match(self, local: Type, target: Type) -> bool:
        if local.size != target.size or local.vlen > target.vlen:
            return self._no(
                f"{target!r} has {target.size} bytes and {target.vlen} values,"
                f" the local one {local.size} and {local.vlen}"
            )
        self._count_work(local.vlen + target.vlen)
        names = {essential_name(name) for name, _ in self.target.enumerators(target)}
        for name, _ in self.local.enumerators(local):
            if essential_name(name) not in names:
                return self._no(f"{target!r} has no enumerator '{name}'")
        return True

    def _composites_match(self, local: Type, target: Type, level: int) -> bool:
        """Each local member has an equal among the target's (bpf_core_composites_match); never behind a pointer."""
        if local.vlen > target.vlen:
            return self._no(f"{target!r} has {target.vlen} members, the local one {local.vlen}")
        members = self.target.members(target)
        for name, local_id, _, _ in self.local.members(local):
            why = None
            for target_name, target_id, _, _ in members:
                self._count_work()
                if names_match(name, target_name):
                    if self.types_match(local_id, target_id, False, level - 1):
                        break
                    why = f"{target!r}: member '{name}' differs: {self.why}"
            else:
                return self._no(why or f"{target!r} has no member '{name}'")
        return True


def _path(spec: Spec) -> str:
    """The members and indexes a spec has come through so far: `ioac`, `pids[1].node`; empty at its root."""
    return "".join(f".{name}" if name else f"[{index}]" for _, index, name in spec.accessors[1:]).lstrip(".")


def _article(t: Type) -> str:
    word = "void" if t.kind == BTF_KIND_UNKN else KIND_NAMES[t.kind]
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"

"""Externs of an object on a kernel: Kconfig values (kconfig.py does the reading) and kernel symbols (libbpf:
bpf_object__resolve_externs()).

Typed ksyms and kfuncs are looked up in the kernel's own BTF, then in its modules'; typeless ones in /proc/kallsyms.
"""

from __future__ import annotations

import sys

from . import btf as B
from . import kconfig
from .core_match import Matcher
from .core_spec import type_text
from .errors import EINVAL, ExternError
from .names import essential_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Union

    from .bpf_object import BpfObject
    from .modules import ModuleBtf

    Extern = Union[kconfig.Extern, "Ksym"]


# libbpf 1.3: a kernel function's flavor is no part of its name, and a weak one whose type does not fit is missing
# (bpf_object__resolve_ksym_func_btf_id()); 1.1.2 has neither, 1.5.0 has both, the releases between were not looked at.
_KFUNC_FLAVORS = (1, 3)


def kfunc_name(ksym: Ksym, rules: tuple[int, ...] | None = None) -> str:
    """What libbpf looks a kernel symbol of known type up as, by the rules of a version (None: the newest)."""
    return essential_name(ksym.name) if ksym.is_func and flavors_ignored(rules) else ksym.name


def flavors_ignored(rules: tuple[int, ...] | None) -> bool:
    """Whether a version of libbpf (None: the newest) passes over a kernel function's flavor, and over a weak one of
    another type.
    """
    return rules is None or rules >= _KFUNC_FLAVORS


class Ksym:
    """A symbol of the kernel: `type_id` is its type in the object's BTF (a variable's without modifiers, a function's
    prototype), 0 for a typeless one. Resolved: `is_set`, and either `btf_id` with `btf_obj_fd` (0: vmlinux) and for
    functions `fd_index` into fd_array, or an address in `value`."""

    __slots__ = (
        "btf_id", "btf_obj_fd", "data_off", "fd_index", "is_func", "is_set", "module", "name", "section", "sym_idx",
        "type_id",
        "value", "weak", "why",
    )  # fmt: skip

    def __init__(self, extern: kconfig.Extern, btf: B.Btf) -> None:
        self.name = extern.name
        self.sym_idx = extern.sym_idx
        self.section = extern.section
        self.weak = extern.weak
        self.is_func = extern.is_func
        local = btf.type(extern.btf_id)
        self.type_id = local.type if extern.is_func else btf.skip_mods_and_typedefs(local.type).id
        self.is_set = False
        self.btf_id = self.btf_obj_fd = self.fd_index = self.data_off = 0
        self.value = 0
        self.module: str | None = None
        self.why: str | None = None

    @property
    def kind(self) -> str:
        return "kfunc" if self.is_func else "ksym"

    def refuse(self, why: str, errno: int = EINVAL, missing: bool = False) -> ExternError:
        words = f"extern ({'func' if self.is_func else 'var'} ksym) '{self.name}': {why}"
        return ExternError(words, errno, self.name, missing)


class Externs:
    """All externs of one object. `kconfig` in the order of the map, `ksyms` by name; `fd_array` for kfuncs of modules.

    Raises GuestError (stage open) where libbpf refuses to open the object.
    """

    def __init__(self, obj: BpfObject) -> None:
        found = kconfig.find_externs(obj)
        self.kconfig: list[kconfig.Extern] = []
        self.ksyms: list[Ksym] = []
        self.fd_array: list[int] = []
        self._obj = obj
        self._refused: str | None = None
        if obj.btf is not None:
            self.kconfig = kconfig.layout(found[".kconfig"], obj.btf)
            self.ksyms = sorted((Ksym(x, obj.btf) for x in found[".ksyms"]), key=lambda x: x.name)

    @property
    def all(self) -> list[Extern]:
        """In libbpf's order, which numbers the poison of weak kfuncs (cmp_externs())."""
        return [*self.kconfig, *self.ksyms]

    def resolve(self, kernel: KernelSymbols, rules: tuple[int, ...] | None = None) -> None:
        """Give every extern its value, by the rules of a libbpf version (None: the newest). ExternError where libbpf
        gives up; what was resolved by then stays.
        """
        try:
            self._resolve(kernel, rules)
        except ExternError as error:
            self._refused = None if error.missing else error.name
            raise

    def _resolve(self, kernel: KernelSymbols, rules: tuple[int, ...] | None) -> None:
        if self.kconfig:
            names = [x.name for x in self.kconfig]
            kconfig.resolve(
                self.kconfig,
                byteorder=sys.byteorder,
                extra=None,
                system=lambda: kernel.kconfig(names),
                virtual=kernel.virtual,
            )
        typeless = [x for x in self.ksyms if not x.type_id]
        if typeless:
            _resolve_addresses(typeless, kernel)
        for ksym in self.ksyms:
            if ksym.type_id:
                self._resolve_typed(ksym, kernel, rules)
        kconfig.require(self.ksyms)  # type: ignore[arg-type]

    def _resolve_typed(self, ksym: Ksym, kernel: KernelSymbols, rules: tuple[int, ...] | None) -> None:
        kind = B.BTF_KIND_FUNC if ksym.is_func else B.BTF_KIND_VAR
        found = kernel.find(kfunc_name(ksym, rules), kind)
        if found is None:
            ksym.why = "not in the kernel's BTF" if kernel.btf() is not None else "the kernel has no BTF of its own"
            if not ksym.weak:
                # bpf_object__resolve_externs() answers EINVAL whatever bpf_object__resolve_ksyms_btf_id() said
                # (-ESRCH).
                raise ksym.refuse("not found in kernel or module BTFs", missing=True)
            return
        btf, type_id, module = found
        if not self._compatible(ksym, btf, type_id):
            if ksym.is_func and ksym.weak and flavors_ignored(rules):
                return
            raise ksym.refuse(ksym.why or "incompatible types")
        ksym.is_set, ksym.btf_id = True, type_id
        if module is not None:
            ksym.module, ksym.btf_obj_fd = module.name, module.fd
            ksym.fd_index = self._fd_index(module.fd) if ksym.is_func else 0

    def _compatible(self, ksym: Ksym, btf: B.Btf, type_id: int) -> bool:
        local = self._obj.btf
        assert local is not None
        target = btf.type(type_id).type
        target = target if ksym.is_func else btf.skip_mods_and_typedefs(target).id
        if Matcher(local, btf).types_are_compat(ksym.type_id, target):
            return True
        ksym.why = f"incompatible types: local {type_text(local, ksym.type_id)}, kernel {type_text(btf, target)}"
        return False

    def _fd_index(self, fd: int) -> int:
        """The module's place in fd_array; 0 is taken, the kernel reads it as vmlinux."""
        if not self.fd_array:
            self.fd_array.append(0)
        if fd not in self.fd_array:
            self.fd_array.append(fd)
        return self.fd_array.index(fd)

    def facts(self) -> list[dict[str, Any]]:
        """The `externs` of docs/facts.md."""
        rows = [_kconfig_row(x) for x in self.kconfig] + [_ksym_row(x) for x in self.ksyms]
        for row in rows:
            if row["name"] == self._refused:
                row["outcome"] = "error"
        return rows


def _kconfig_row(extern: kconfig.Extern) -> dict[str, Any]:
    missing = not extern.is_set
    value = None if missing and not extern.weak else extern.plain_value(sys.byteorder)
    why = "not set in this kernel's Kconfig" if missing else None
    return {
        "name": extern.name, "kind": "kconfig", "type": extern.kind, "value": value, "weak": extern.weak,
        "outcome": "missing" if missing else "resolved", "reason": why,
    }  # fmt: skip


def _ksym_row(ksym: Ksym) -> dict[str, Any]:
    value = ksym.value if ksym.is_set and not ksym.type_id else None
    return {
        "name": ksym.name, "kind": ksym.kind, "type": "typed" if ksym.type_id else "typeless", "value": value,
        "weak": ksym.weak,
        "outcome": "resolved" if ksym.is_set else "missing", "reason": ksym.why if not ksym.is_set else ksym.module,
    }  # fmt: skip


def _resolve_addresses(ksyms: list[Ksym], kernel: KernelSymbols) -> None:
    """Addresses of typeless ksyms; one name at two addresses is an error even for weak ones."""
    wanted = {x.name: x for x in ksyms}
    for address, name in kernel.kallsyms(set(wanted)):
        ksym = wanted[name]
        if ksym.is_set and ksym.value != address:
            raise ksym.refuse(f"resolution is ambiguous: {ksym.value:#x} or {address:#x}")
        ksym.is_set, ksym.value = True, address
    for ksym in ksyms:
        if not ksym.is_set:
            ksym.why = "not in /proc/kallsyms"


class KernelSymbols:
    """What the resolver asks of a kernel: `btf()` its own BTF or None, `find` in it and its modules, texts of Kconfig
    and kallsyms, and the LINUX_* values."""

    def __init__(
        self,
        btf: Callable[[], B.Btf | None],
        modules: Callable[[], list[ModuleBtf]],
        kconfig_lines: Callable[[list[str]], str | None],
        virtual: Callable[[str], int | None],
    ) -> None:
        self.btf = btf
        self._modules = modules
        self.kconfig = kconfig_lines
        self.virtual = virtual

    def find(self, name: str, kind: int, modules: bool = True) -> tuple[B.Btf, int, ModuleBtf | None] | None:
        """`(BTF, type id, module or None)` of a name, vmlinux before the modules (find_ksym_btf_id()); with `modules`
        False vmlinux alone.
        """
        main = self.btf()
        if main is None:
            return None
        found = main.find(name, kind)
        if found is not None:
            return main, found, None
        for module in self._modules() if modules else ():
            own = find_own(module.btf, name, kind)
            if own is not None:
                return module.btf, own, module
        return None

    def find_in(self, module: str | None, name: str, kind: int) -> tuple[int, int] | None:
        """`(type id, fd of the module's BTF or 0)` of an attach target, in one module, in vmlinux ("vmlinux"), or
        (None) in all (find_kernel_btf_id())."""
        main = self.btf()
        if main is not None and module in (None, "vmlinux"):
            found = main.find(name, kind)
            if found is not None:
                return found, 0
        for candidate in self._modules():
            own = find_own(candidate.btf, name, kind) if module in (None, candidate.name) else None
            if own is not None:
                return own, candidate.fd
        return None

    def modules_lack_btf(self) -> bool:
        """Whether there are modules here, and none with BTF: theirs came with 5.11, as a switch of its own."""
        try:
            with open("/proc/modules", "rb") as file:
                return bool(file.read(1)) and not self._modules()
        except OSError:
            return False

    def kallsyms(self, names: set[str]) -> list[tuple[int, str]]:
        """`(address, name)` of these names, in file order."""
        found = []
        with open("/proc/kallsyms", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                words = line.split(None, 3)
                if len(words) > 2 and words[2] in names:
                    found.append((int(words[0], 16), words[2]))
        return found


def find_own(btf: B.Btf, name: str, kind: int) -> int | None:
    """The first of a split BTF's own types with that name and kind (btf__find_by_name_kind_own())."""
    for type_id in btf.ids_by_essential_name(essential_name(name)):
        if btf.kind(type_id) == kind and btf.type(type_id).name == name:
            return type_id
    return None

"""Kconfig externs (`extern int CONFIG_HZ __kconfig`): types, layout of the `.kconfig` map, values from Kconfig text.

As libbpf does it: bpf_object__collect_externs, find_kcfg_type, cmp_externs, bpf_object__process_kconfig_line,
bpf_object__resolve_externs. Ksym externs are found here as well (find_externs) and resolved by the loader.

    externs = layout(find_externs(obj)[".kconfig"], obj.btf)
    resolve(externs, byteorder="little", extra=None, system=read_config, virtual=probe)
    data = map_value(externs)
"""

from __future__ import annotations

from . import elf as E
from .btf import (
    BTF_INT_BOOL,
    BTF_INT_SIGNED,
    BTF_KIND_ARRAY,
    BTF_KIND_DATASEC,
    BTF_KIND_ENUM,
    BTF_KIND_ENUM64,
    BTF_KIND_FUNC,
    BTF_KIND_INT,
    BTF_KIND_PTR,
    BTF_KIND_TYPEDEF,
    BTF_KIND_VAR,
    Btf,
    Type,
)
from .errors import EINVAL, ENOENT, ENOMEM, ENOTSUP, ERANGE, ESRCH, CoreError, ExternError, GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .bpf_object import BpfObject

KCFG_CHAR, KCFG_BOOL, KCFG_INT, KCFG_TRISTATE, KCFG_CHAR_ARR = "char", "bool", "int", "tristate", "char array"
TRI_NO, TRI_YES, TRI_MODULE = 0, 1, 2  # enum libbpf_tristate
BTF_LINKAGE_EXTERN = 2  # BTF_VAR_GLOBAL_EXTERN, BTF_FUNC_EXTERN
_LINE_MAX = 4095  # fgets() into char[PATH_MAX]: longer lines arrive in pieces
_U64 = 1 << 64
_MAX_MAP = 16 << 20  # bytes of all Kconfig values; the guest has 256 MB, a Kconfig 300 KB


class Extern:
    """One undefined symbol with its BTF.

    `name`, `sym_idx`, `weak`, `btf_id` (of the var or func), `is_func`, `section` (".kconfig" or ".ksyms"), `type_id`
    (the variable's type, 0 for a func). After layout(), for Kconfig externs: `kind` (KCFG_*), `size`, `align`,
    `signed`, `data_off` (in the map). After resolve(): `is_set`, `value` (bytes of `size`, zeros unless set).
    """

    __slots__ = (
        "align", "btf_id", "data_off", "is_func", "is_set", "kind", "name", "section", "signed",
        "size", "sym_idx", "type_id", "value",
        "weak",
    )  # fmt: skip

    def __init__(self, name: str, sym_idx: int, weak: bool, var: Type, section: str) -> None:
        self.name = name
        self.sym_idx = sym_idx
        self.weak = weak
        self.btf_id = var.id
        self.is_func = var.kind == BTF_KIND_FUNC
        self.section = section
        self.type_id = 0 if self.is_func else var.type
        self.kind = ""
        self.size = self.align = self.data_off = 0
        self.signed = False
        self.is_set = False
        self.value = b""

    def refuse(self, why: str, errno: int = EINVAL) -> ExternError:
        return ExternError(f"extern (kcfg) '{self.name}': {why}", errno, self.name)

    def set_number(self, number: int, byteorder: str) -> None:
        """Store an unsigned 64-bit number (set_kcfg_value_num). ExternError when the type cannot take it."""
        if self.kind not in (KCFG_INT, KCFG_CHAR, KCFG_BOOL):
            raise self.refuse(f"value '{number}' implies integer, char, or boolean type")
        if not self._in_range(number):
            raise self.refuse(f"value '{number}' doesn't fit in {self.size} bytes", ERANGE)
        self._store(number % (1 << self.size * 8), self.size, byteorder)

    def _in_range(self, number: int) -> bool:
        bits = self.size * 8
        if bits == 64:
            return True
        return (number + (1 << bits - 1)) % _U64 < 1 << bits if self.signed else number >> bits == 0

    def _store(self, number: int, width: int, byteorder: str) -> None:
        self.value = number.to_bytes(width, "little" if byteorder == "little" else "big").ljust(self.size, b"\0")
        self.is_set = True

    def set_text(self, text: str, byteorder: str) -> None:
        """Store what stands behind `=` in a Kconfig line (bpf_object__process_kconfig_line)."""
        if text[0] in "ynm":
            self._set_tristate(text[0], byteorder)
        elif text[0] == '"':
            self._set_string(text)
        else:
            number = parse_u64(text)
            if number is None:
                raise self.refuse(f"value '{text}' isn't a valid integer")
            if self.kind not in (KCFG_INT, KCFG_CHAR):
                raise self.refuse(f"value '{text}' implies integer type")
            self.set_number(number, byteorder)

    def _set_tristate(self, letter: str, byteorder: str) -> None:
        if self.kind == KCFG_BOOL:
            if letter == "m":
                raise self.refuse("value 'm' implies tristate or char type")
            self._store(letter == "y", 1, byteorder)
        elif self.kind == KCFG_TRISTATE:  # an enum is stored, four bytes even into an enum64
            self._store({"y": TRI_YES, "m": TRI_MODULE}.get(letter, TRI_NO), 4, byteorder)
        elif self.kind == KCFG_CHAR:
            self._store(ord(letter), 1, byteorder)
        else:
            raise self.refuse(f"value '{letter}' implies bool, tristate, or char type")

    def _set_string(self, text: str) -> None:
        if self.kind != KCFG_CHAR_ARR:
            raise self.refuse(f"value '{text}' implies char array type")
        if len(text) < 2 or not text.endswith('"'):
            raise self.refuse(f"invalid string config '{text}'")
        inner = text[1:-1].encode("utf-8", "surrogateescape")
        self.value = inner[: self.size - 1].ljust(self.size, b"\0")
        self.is_set = True

    def plain_value(self, byteorder: str) -> object:
        """The value for a report: a number, true/false, y/n/m, or text; 0 when it was not found."""
        order = "little" if byteorder == "little" else "big"
        if self.kind == KCFG_CHAR_ARR:
            return self.value.split(b"\0", 1)[0].decode("utf-8", "replace")
        width = 4 if self.kind == KCFG_TRISTATE else self.size
        number = int.from_bytes(self.value[:width], order, signed=self.signed)  # type: ignore[arg-type]
        if self.kind == KCFG_BOOL:
            return bool(number)
        if self.kind == KCFG_TRISTATE:
            return {TRI_NO: "n", TRI_YES: "y", TRI_MODULE: "m"}.get(number, number)
        return number


# -- finding them (bpf_object__collect_externs)


def find_externs(obj: BpfObject) -> dict[str, list[Extern]]:
    """Externs of an object by section, ".kconfig" and ".ksyms", in symbol order.

    GuestError (stage open) where libbpf refuses the object: an undefined symbol without BTF, or in some other section.
    """
    found: dict[str, list[Extern]] = {".kconfig": [], ".ksyms": []}
    by_name, sections = None, None
    for symbol in obj.elf.symbols:
        if symbol.shndx or symbol.bind == E.STB_LOCAL or symbol.type != E.STT_NOTYPE or not symbol.name:
            continue
        if obj.btf is None:
            raise GuestError(f"{obj.path}: failed to find BTF for extern '{symbol.name}': the object has none", ESRCH)
        if by_name is None or sections is None:
            by_name, sections = _extern_types(obj.btf)
        var = by_name.get(symbol.name)
        if var is None:
            raise GuestError(f"{obj.path}: failed to find BTF for extern '{symbol.name}'", ENOENT)
        section = sections.get(var.id)
        if section is None:
            raise GuestError(f"{obj.path}: failed to find BTF for extern '{symbol.name}' [{var.id}] section", ENOENT)
        if section not in found:
            raise GuestError(
                f"{obj.path}: extern '{symbol.name}' is in unrecognized section '{section}'", ENOTSUP
            )
        if section == ".kconfig" and var.kind == BTF_KIND_FUNC:
            raise GuestError(
                f"{obj.path}: extern function {symbol.name} is unsupported under .kconfig section", ENOTSUP
            )
        found[section].append(Extern(symbol.name, symbol.index, symbol.bind == E.STB_WEAK, var, section))
    return found


def _extern_types(btf: Btf) -> tuple[dict[str, Type], dict[int, str]]:
    """Extern vars and funcs by name, and the names of the sections they are in by type id."""
    by_name: dict[str, Type] = {}
    sections: dict[int, str] = {}
    for id_ in range(1, btf.count):
        kind = btf.kind(id_)
        if kind in (BTF_KIND_VAR, BTF_KIND_FUNC):
            t = btf.type(id_)
            if btf.linkage(t) == BTF_LINKAGE_EXTERN:
                by_name.setdefault(t.name, t)
        elif kind == BTF_KIND_DATASEC:
            t = btf.type(id_)
            for var_id, _, _ in btf.datasec(t):
                sections.setdefault(var_id, t.name)
    return by_name, sections


# -- types and layout


def layout(externs: list[Extern], btf: Btf) -> list[Extern]:
    """Type the Kconfig externs and give each its place in the map; returns them in the map's order (cmp_externs)."""
    total = 0
    for extern in externs:
        try:
            extern.size = btf.resolve_size(extern.type_id)
        except CoreError as error:
            raise GuestError(
                f"failed to resolve size of extern (kcfg) '{extern.name}': {error.message}", error.errno
            ) from None
        total += extern.size
        if total > _MAX_MAP:
            raise GuestError(f"extern (kcfg) '{extern.name}': {total} bytes of Kconfig values", ENOMEM)
        extern.kind, extern.signed = _kind_of(btf, extern.type_id)
        if not extern.kind:
            raise GuestError(f"extern (kcfg) '{extern.name}': type is unsupported", ENOTSUP)
        extern.align = _align_of(btf, extern.type_id)
        extern.value = bytes(extern.size)
    ordered = sorted(externs, key=lambda extern: (-extern.align, extern.size, extern.name))
    offset = 0
    for extern in ordered:
        extern.data_off = (offset + extern.align - 1) // extern.align * extern.align
        offset = extern.data_off + extern.size
    return ordered


def _kind_of(btf: Btf, type_id: int) -> tuple[str, bool]:
    """(KCFG_* or "", signed) of a variable's type (find_kcfg_type)."""
    t = btf.skip_mods_and_typedefs(type_id)
    if t.kind == BTF_KIND_INT:
        encoding = btf.int_data(t)[0]
        if encoding & BTF_INT_BOOL:
            return (KCFG_BOOL if t.size == 1 else ""), False
        kind = KCFG_CHAR if t.size == 1 else KCFG_INT if t.size in (2, 4, 8) else ""
        return kind, bool(encoding & BTF_INT_SIGNED)
    if t.kind == BTF_KIND_ENUM64 or (t.kind == BTF_KIND_ENUM and t.size == 4):
        return (KCFG_TRISTATE if t.name == "libbpf_tristate" else ""), False
    if t.kind == BTF_KIND_ARRAY:
        element, _, elements = btf.array(t)
        inner = btf.skip_mods_and_typedefs(element)
        is_char = inner.kind == BTF_KIND_INT and elements and _kind_of(btf, inner.id)[0] == KCFG_CHAR
        return (KCFG_CHAR_ARR if is_char else ""), False
    return "", False


def _align_of(btf: Btf, type_id: int) -> int:
    """btf__align_of() for the types an extern can have."""
    t = btf.skip_mods_and_typedefs(type_id)
    while t.kind in (BTF_KIND_ARRAY, BTF_KIND_TYPEDEF):
        t = btf.skip_mods_and_typedefs(btf.array(t)[0])
    return btf.pointer_size if t.kind == BTF_KIND_PTR else max(1, min(btf.pointer_size, t.size))


def map_value(externs: list[Extern]) -> bytes:
    """Content of the `.kconfig` map: all values at their places."""
    data = bytearray()
    for extern in externs:
        data += bytes(extern.data_off - len(data)) + extern.value
    return bytes(data)


# -- values


def parse_u64(text: str) -> int | None:
    """strtoull(text, base 0) over the whole text, as unsigned 64 bits; None for junk and for numbers that are too
    large.
    """
    digits = text.lstrip(" \t\n\v\f\r")
    negative = digits[:1] == "-"
    if digits[:1] in ("-", "+"):
        digits = digits[1:]
    base = 10
    if digits[:2] in ("0x", "0X"):
        base, digits = 16, digits[2:]
    elif digits[:1] == "0":
        base = 8
    allowed = "0123456789abcdef"[:base]
    if not digits or any(digit not in allowed for digit in digits.lower()):
        return None
    number = int(digits, base)
    if number >= _U64:
        return None
    return -number % _U64 if negative else number


def read_text(externs: list[Extern], text: str, byteorder: str) -> None:
    """Set externs from Kconfig text; an extern that is set already keeps its value. ExternError (EINVAL) for a bad
    line.
    """
    by_name = {extern.name: extern for extern in externs}
    for whole in text.split("\n"):
        for start in range(0, max(len(whole), 1), _LINE_MAX):
            _read_line(by_name, whole[start : start + _LINE_MAX], byteorder)


def _read_line(by_name: dict[str, Extern], line: str, byteorder: str) -> None:
    if not line.startswith("CONFIG_"):
        return
    name, separator, value = line.partition("=")
    if not separator:
        raise ExternError(f"Kconfig: failed to parse '{line}': no separator", EINVAL)
    if not value:
        raise ExternError(f"Kconfig: failed to parse '{line}': no value", EINVAL)
    extern = by_name.get(name)
    if extern is None or extern.is_set:
        return
    try:
        extern.set_text(value, byteorder)
    except ExternError as error:  # libbpf reports EINVAL for any bad line
        raise ExternError(f"{error.message} (Kconfig line '{line}')", EINVAL, name) from None


def resolve(
    externs: list[Extern],
    *,
    byteorder: str,
    extra: str | None,
    system: Callable[[], str | None],
    virtual: Callable[[str], int | None],
) -> None:
    """Give each Kconfig extern its value, in libbpf's order (bpf_object__resolve_externs).

    `extra` is the caller's Kconfig text, read first; `system` returns the running kernel's, None when unreadable, and
    is asked only while a CONFIG_ extern lacks a value. `virtual` gives the number of a LINUX_* extern:
    LINUX_KERNEL_VERSION (0: not to be had), LINUX_HAS_BPF_COOKIE, LINUX_HAS_SYSCALL_WRAPPER, None for one it does not
    know. Raises ExternError: EINVAL for values that do not fit, unknown virtual externs and an unreadable Kconfig,
    ESRCH for a strong extern without a value.
    """
    config = [extern for extern in externs if extern.name.startswith("CONFIG_")]
    for extern in externs:
        if extern not in config:
            _set_virtual(extern, virtual, byteorder)
    if config and extra is not None:
        read_text(externs, extra, byteorder)
        config = [extern for extern in externs if not extern.is_set]
    if config:
        text = system()
        if text is None:
            raise ExternError("failed to open system Kconfig (/boot/config-RELEASE, /proc/config.gz)", EINVAL)
        read_text(externs, text, byteorder)
    require(externs)


def _set_virtual(extern: Extern, virtual: Callable[[str], int | None], byteorder: str) -> None:
    number = virtual(extern.name) if extern.name.startswith("LINUX_") else None
    if extern.name == "LINUX_KERNEL_VERSION" and not number:
        raise extern.refuse("failed to get kernel version")
    if number is None:
        if not extern.weak or not extern.name.startswith("LINUX_"):
            raise extern.refuse("unrecognized virtual extern")
        number = 0
    extern.set_number(number, byteorder)


def require(externs: Iterable[Extern]) -> None:
    """ExternError (ESRCH) for the first strong extern without a value."""
    for extern in externs:
        if not extern.is_set and not extern.weak:
            raise ExternError(f"extern '{extern.name}' (strong): not resolved", ESRCH, extern.name, missing=True)


# -- LINUX_KERNEL_VERSION (get_kernel_version)


def reads_debian_version(rules: tuple[int, ...] | None) -> bool:
    """Whether a version of libbpf (None: the newest) reads "Debian 6.1.192-2" in uname's version; before it took 6.1.0
    from its release.
    """
    return rules is None or rules >= (1, 2)


def kernel_version(release: str, version: str = "", signature: str | None = None) -> int:
    """LINUX_KERNEL_VERSION, 0 when it cannot be told.

    `release` and `version` as uname has them; `signature` is the text of Ubuntu's /proc/version_signature. Ubuntu's
    and Debian's releases do not carry the stable patch level, so libbpf looks there first.
    """
    words = (signature or "").split()
    number = _three_numbers(words[2]) if len(words) > 2 else 0
    debian = version.find("Debian ")
    if not number and debian >= 0:
        number = _three_numbers(version[debian + 7 :])
    return number or _three_numbers(release)


def _three_numbers(text: str) -> int:
    numbers, rest = [], text.lstrip(" ")
    for at in range(3):
        length = len(rest) - len(rest.lstrip("0123456789"))
        if not length:
            return 0
        numbers.append(int(rest[:length]))
        rest = rest[length:]
        if at < 2:
            if rest[:1] != ".":
                return 0
            rest = rest[1:]
    major, minor, patch = numbers
    return ((major << 16) + (minor << 8) + min(patch, 255)) & 0xFFFFFFFF

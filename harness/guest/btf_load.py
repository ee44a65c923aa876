"""The object's BTF as the kernel gets it: completed from the ELF, rewritten for kernels that lack kinds, loaded.

clang leaves the sizes of data sections and the offsets of global variables at 0 (bpf_object_fixup_btf()), externs
point at sections that do not exist (bpf_object__collect_externs()), and older kernels refuse whole BTFs over one
unknown kind (bpf_object__sanitize_btf()). All this happens on a copy; the parsed Btf that relocation uses stays as it
is in the file.
"""

from __future__ import annotations

import sys
from array import array

from . import btf as B
from . import elf as E
from .raw_btf import blob, head, integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .bpf_object import BpfObject

_STATIC, _GLOBAL = 0, 1
_U32 = 0xFFFFFFFF  # what an ELF says in 64 bits goes into 32, as in libbpf
_RESTRICTED = (E.STV_INTERNAL, E.STV_HIDDEN)


def variable_places(obj: BpfObject) -> dict[str, int]:
    """Offset in its section of every variable the symbol table names (find_elf_var_sym())."""
    return {s.name: s.value for s in obj.elf.symbols if s.type == E.STT_OBJECT and s.shndx}


class BtfImage:
    """A changeable copy of an object's BTF: `words` is the type section, `place(id)` where a type starts in it."""

    def __init__(self, btf: B.Btf) -> None:
        self.btf = btf
        self.words = array("I", btf._words)
        self._strings = bytearray(btf._strings)
        self._added = 0
        self._kinds = [self.words[place + 1] >> 24 & 0x7F for place in btf._places]

    def place(self, type_id: int) -> int:
        return self.btf._place(type_id)

    def types(self, *kinds: int) -> list[B.Type]:
        """The original types of these kinds, by rising id."""
        return [self.btf.type(i) for i, kind in enumerate(self._kinds, 1) if kind in kinds]

    def set_info(self, type_id: int, kind: int, vlen: int, size: int | None = None) -> None:
        """Make a type another kind of the same length."""
        place = self.place(type_id)
        self.words[place + 1] = kind << 24 | vlen
        if size is not None:
            self.words[place + 2] = size

    def string(self, text: bytes) -> int:
        """The offset of a new string."""
        self._strings += text + b"\0"
        return len(self._strings) - len(text) - 1

    def add(self, words: list[int]) -> int:
        """Append a type; its id."""
        self.words.extend(words)
        self._added += 1
        return self.btf.count + self._added - 1

    def rewrite_name(self, type_id: int, bad: bytes) -> None:
        """Replace the characters of `bad` in a type's name by "_"."""
        place = self.place(type_id)
        name = self.btf.string_bytes(self.words[place])
        self.words[place] = self.string(bytes(0x5F if c in bad else c for c in name))

    def bytes(self) -> bytes:
        """The whole .BTF, in the machine's byte order."""
        words = self.words.tolist()
        return blob(words, bytes(self._strings))


# -- completing it from the ELF


def complete(image: BtfImage, obj: BpfObject) -> None:
    """Section sizes, variable offsets, hidden variables and functions (bpf_object_fixup_btf(),
    sanitize_and_load_btf())."""
    symbols = {s.name: s for s in obj.elf.symbols if s.type == E.STT_OBJECT and s.bind != E.STB_LOCAL}
    for sec in image.types(B.BTF_KIND_DATASEC):
        if sec.name not in (".kconfig", ".ksyms"):
            _complete_datasec(image, obj, sec, symbols)
    hidden = {prog.name for prog in obj.progs if prog.hidden and prog.is_subprog}
    if hidden:
        for func in image.types(B.BTF_KIND_FUNC):
            if func.name in hidden:
                image.set_info(func.id, B.BTF_KIND_FUNC, _STATIC)


def _complete_datasec(image: BtfImage, obj: BpfObject, sec: B.Type, symbols: dict[str, E.Symbol]) -> None:
    place, words = image.place(sec.id), image.words
    fixup = words[place + 2] == 0
    if fixup:
        section = obj.elf.section(sec.name)
        words[place + 2] = section.size & _U32 if section is not None else 0
    rows = []
    for var_id, listed, size in image.btf.datasec(sec):
        var, offset = image.btf.type(var_id), listed
        symbol = symbols.get(var.name)
        if var.kind == B.BTF_KIND_VAR and image.btf.linkage(var) == _GLOBAL and symbol is not None:
            offset = symbol.value & _U32 if fixup else listed
            if symbol.visibility in _RESTRICTED:
                words[image.place(var_id) + 3] = _STATIC
        rows.append((offset, var_id, size))
    set_datasec(image, sec.id, rows)


def set_datasec(image: BtfImage, sec_id: int, rows: list[tuple[int, int, int]]) -> None:
    """Write a section's variables, `(offset, var id, size)`, by rising offset."""
    at = image.place(sec_id) + 3
    for offset, var_id, size in sorted(rows, key=lambda row: row[0]):
        image.words[at : at + 3] = array("I", (var_id, offset, size))
        at += 3


def complete_kconfig(image: BtfImage, offsets: dict[str, int], size: int) -> None:
    """Give `.kconfig` the layout of the synthetic map; `offsets` by extern name."""
    sec_id = image.btf.find(".kconfig", B.BTF_KIND_DATASEC)
    if sec_id is None:
        return
    rows = []
    for var_id, offset, var_size in image.btf.datasec(image.btf.type(sec_id)):
        if image.btf.kind(var_id) == B.BTF_KIND_VAR:
            image.words[image.place(var_id) + 3] = _GLOBAL
        rows.append((offsets.get(image.btf.type(var_id).name, offset), var_id, var_size))
    image.words[image.place(sec_id) + 2] = size
    set_datasec(image, sec_id, rows)


def complete_ksyms(image: BtfImage) -> None:
    """Make every ksym an int of 4 bytes, and every kfunc's entry a dummy variable: the kernel allows nothing else
    there."""
    sec_id = image.btf.find(".ksyms", B.BTF_KIND_DATASEC)
    if sec_id is None:
        return
    btf, words = image.btf, image.words
    entries = btf.datasec(btf.type(sec_id))
    int_id = _find_int(image)
    dummy = name = 0
    if any(btf.kind(var_id) == B.BTF_KIND_FUNC for var_id, _, _ in entries):
        name = image.string(b"dummy_ksym")
        dummy = image.add([*head(name, B.BTF_KIND_VAR, 0, int_id), _GLOBAL])
    rows = []
    for position, (symbol_id, _, _) in enumerate(entries):
        var_id, place = symbol_id, image.place(symbol_id)
        if btf.kind(var_id) == B.BTF_KIND_FUNC:
            _name_params(image, words[place + 2], name)
            image.set_info(var_id, B.BTF_KIND_FUNC, _GLOBAL)
            var_id = dummy
        elif btf.kind(var_id) == B.BTF_KIND_VAR:
            words[place + 2], words[place + 3] = int_id, _GLOBAL
        rows.append((4 * position, var_id, 4))
    words[image.place(sec_id) + 2] = 4 * len(entries)
    set_datasec(image, sec_id, rows)


def _find_int(image: BtfImage) -> int:
    for t in image.types(B.BTF_KIND_INT):
        if t.size == 4:
            return t.id
    return image.add(integer(image.string(b"int")))


def _name_params(image: BtfImage, proto_id: int, name: int) -> None:
    """A func_proto of a FUNC must name its parameters; declarations often do not."""
    place = image.place(proto_id)
    if image.words[place + 1] >> 24 & 0x7F != B.BTF_KIND_FUNC_PROTO:
        return
    for at in range(place + 3, place + 3 + 2 * (image.words[place + 1] & 0xFFFF), 2):
        if image.words[at + 1] and not image.words[at]:
            image.words[at] = name


# -- rewriting it for kernels that lack kinds


def _to_byte_int(image: BtfImage, t: B.Type) -> None:
    # Size 1: a larger one could overlap its neighbour in the struct the section becomes, and the kernel checks that.
    image.set_info(t.id, B.BTF_KIND_INT, 0, 1)
    image.words[image.place(t.id) + 3] = 8


def _datasec_to_struct(image: BtfImage, t: B.Type) -> None:
    place, words = image.place(t.id), image.words
    image.rewrite_name(t.id, b".?")
    image.set_info(t.id, B.BTF_KIND_STRUCT, t.vlen)
    for at in range(place + 3, place + 3 + 3 * t.vlen, 3):
        var_id, offset = words[at], words[at + 1]
        words[at : at + 3] = array("I", (words[image.place(var_id)], var_id, offset * 8 & _U32))


def _qmark(image: BtfImage, t: B.Type) -> None:
    if t.name.startswith("?"):
        image.rewrite_name(t.id, b"?")


def _proto_to_enum(image: BtfImage, t: B.Type) -> None:
    image.set_info(t.id, B.BTF_KIND_ENUM, t.vlen, 4)


def _func_to_typedef(image: BtfImage, t: B.Type) -> None:
    image.set_info(t.id, B.BTF_KIND_TYPEDEF, 0)


def _func_to_static(image: BtfImage, t: B.Type) -> None:
    image.set_info(t.id, B.BTF_KIND_FUNC, _STATIC)


def _float_to_struct(image: BtfImage, t: B.Type) -> None:
    image.words[image.place(t.id)] = 0
    image.set_info(t.id, B.BTF_KIND_STRUCT, 0)


def _type_tag_to_const(image: BtfImage, t: B.Type) -> None:
    image.words[image.place(t.id)] = 0
    image.set_info(t.id, B.BTF_KIND_CONST, 0)


def _enum_without_kflag(image: BtfImage, t: B.Type) -> None:
    image.set_info(t.id, B.BTF_KIND_ENUM, t.vlen)


def _enum64_to_union(image: BtfImage, t: B.Type) -> None:
    placeholder = image.add(integer(image.string(b"enum64_placeholder"), 1, False))
    place = image.place(t.id)
    image.set_info(t.id, B.BTF_KIND_UNION, t.vlen)
    for at in range(place + 3, place + 3 + 3 * t.vlen, 3):
        image.words[at + 1], image.words[at + 2] = placeholder, 0


# feature that must be missing | kind | what becomes of it; the order is that of bpf_object__sanitize_btf(): the first
# row that fits a type counts.
_SANITISE: tuple[tuple[str, int, Callable[[BtfImage, B.Type], None]], ...] = (
    ("btf_datasec", B.BTF_KIND_VAR, _to_byte_int),
    ("btf_decl_tag", B.BTF_KIND_DECL_TAG, _to_byte_int),
    ("btf_datasec", B.BTF_KIND_DATASEC, _datasec_to_struct),
    ("btf_qmark_datasec", B.BTF_KIND_DATASEC, _qmark),
    ("btf_func", B.BTF_KIND_FUNC_PROTO, _proto_to_enum),
    ("btf_func", B.BTF_KIND_FUNC, _func_to_typedef),
    ("btf_func_global", B.BTF_KIND_FUNC, _func_to_static),
    ("btf_float", B.BTF_KIND_FLOAT, _float_to_struct),
    ("btf_type_tag", B.BTF_KIND_TYPE_TAG, _type_tag_to_const),
    ("btf_enum64", B.BTF_KIND_ENUM, _enum_without_kflag),
    ("btf_enum64", B.BTF_KIND_ENUM64, _enum64_to_union),
)


def sanitise(image: BtfImage, features: dict[str, bool]) -> list[str]:
    """Rewrite what this kernel would refuse; the names of the missing features that mattered."""
    rules: dict[int, tuple[str, Callable[[BtfImage, B.Type], None]]] = {}
    for feature, kind, rule in _SANITISE:
        if not features[feature]:
            rules.setdefault(kind, (feature, rule))
    if not rules:
        return []
    used = []
    for t in image.types(*rules):
        feature, rule = rules[t.kind]
        rule(image, t)
        if feature not in used:
            used.append(feature)
    return used


def native(btf: B.Btf) -> bool:
    """Whether the BTF is in this machine's byte order (libbpf loads no other)."""
    return btf.byteorder == sys.byteorder

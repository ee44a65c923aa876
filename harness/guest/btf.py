"""BTF, the kernel's type format (Documentation/bpf/btf.rst; libbpf btf.c), indexed for looking up a few types among
very many.

A vmlinux holds about 100,000 types, a relocation looks at a dozen. So opening walks the type headers once, remembers
where each type starts and its name's offset, and parses a type only when it is asked for. A name is looked up by
searching the string section for its bytes and the array of name offsets for the place found: both searches run in C.

Nothing is trusted: ids, offsets and lengths are checked when used and raise MalformedBtf; chains have a bounded length.
"""

from __future__ import annotations

import sys
from array import array
from contextlib import suppress
from struct import Struct, calcsize

from .btf_names import IndexedNames, Names
from .elf import Elf, is_elf
from .errors import E2BIG, EINVAL, CoreError, MalformedBtf
from .names import essential_name

(
    BTF_KIND_UNKN, BTF_KIND_INT, BTF_KIND_PTR, BTF_KIND_ARRAY, BTF_KIND_STRUCT, BTF_KIND_UNION,
    BTF_KIND_ENUM, BTF_KIND_FWD, BTF_KIND_TYPEDEF, BTF_KIND_VOLATILE, BTF_KIND_CONST, BTF_KIND_RESTRICT,
    BTF_KIND_FUNC, BTF_KIND_FUNC_PROTO, BTF_KIND_VAR,
    BTF_KIND_DATASEC, BTF_KIND_FLOAT, BTF_KIND_DECL_TAG, BTF_KIND_TYPE_TAG, BTF_KIND_ENUM64,
) = range(20)  # fmt: skip

# btf_kind_str() in libbpf
KIND_NAMES = (
    "unknown", "int", "ptr", "array", "struct", "union", "enum", "fwd", "typedef", "volatile",
    "const", "restrict", "func", "func_proto", "var", "datasec", "float", "decl_tag", "type_tag", "enum64",
)  # fmt: skip

BTF_INT_SIGNED, BTF_INT_CHAR, BTF_INT_BOOL = 1, 2, 4

BTF_MAGIC = 0xEB9F
HEADER_LEN = 24  # struct btf_header up to 2026; longer headers may add layout_off and layout_len
MAX_RESOLVE_DEPTH = 32  # btf.c; btf__resolve_size gives up beyond
_MAX_CHAIN = 4096  # modifiers and typedefs in a row: libbpf has no limit and would hang on a loop

_MAX_NAME_BYTES = 64 << 20  # of a BTF whose names lie inside of each other; none does that honestly
_LONG_NAME = 512  # KSYM_NAME_LEN: the kernel takes no longer ones, so only longer ones are counted
_FEW = 16

_HAS_SIZE = frozenset(
    (BTF_KIND_INT, BTF_KIND_STRUCT, BTF_KIND_UNION, BTF_KIND_ENUM, BTF_KIND_ENUM64, BTF_KIND_DATASEC, BTF_KIND_FLOAT)
)
_MODS = frozenset((BTF_KIND_VOLATILE, BTF_KIND_CONST, BTF_KIND_RESTRICT, BTF_KIND_TYPE_TAG))  # btf_is_mod()
_MODS_AND_TYPEDEFS = _MODS | {BTF_KIND_TYPEDEF}
_TRANSPARENT_FOR_SIZE = _MODS_AND_TYPEDEFS | {BTF_KIND_VAR, BTF_KIND_DECL_TAG}

# Words (u32) behind the three of struct btf_type: (fixed, for each of vlen), by kind.
_EXTRA_WORDS = (
    (0, 0), (1, 0), (0, 0), (3, 0), (0, 3), (0, 3), (0, 2), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0),
    (0, 0), (0, 2), (1, 0), (0, 3),
    (0, 0), (1, 0), (0, 0), (0, 3),
)  # fmt: skip

# determine_ptr_size() in libbpf
_LONG_ALIASES = frozenset((
    "long", "long int", "int long", "unsigned long", "long unsigned", "unsigned long int", "unsigned int long",
    "long unsigned int", "long int unsigned", "int unsigned long", "int long unsigned",
))  # fmt: skip


class _Strides(dict):  # type: ignore[type-arg]
    """Words of a type by its info word; filled on demand, since few different info words exist."""

    def __init__(self, layout: tuple[tuple[int, int], ...]) -> None:
        dict.__init__(self)
        self.layout = layout

    def __missing__(self, info: int) -> int:
        fixed, each = self.layout[info >> 24 & 0x7F]  # IndexError: an unknown kind
        stride = self[info] = 3 + fixed + each * (info & 0xFFFFFF)
        return stride


class Type:
    """One type: `id`, `kind` (BTF_KIND_*), `name` ("" when anonymous), `vlen`, `kflag`, and `size` or `type`.

    `size` (bytes) and `type` (an id) are two names of one word; which it is depends on the kind.
    """

    __slots__ = ("id", "kflag", "kind", "name", "place", "size", "vlen")

    def __init__(self, id_: int, name: str, info: int, size: int, place: int) -> None:
        self.id = id_
        self.name = name
        self.kind = info >> 24 & 0x7F
        self.vlen = info & 0xFFFFFF  # 16 bits until 2026; the other 8 were zero
        self.kflag = info >> 31
        self.size = size
        self.place = place

    @property
    def type(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"[{self.id}] {KIND_NAMES[self.kind]} {self.name or '<anon>'}"


class Btf:
    """One BTF: raw bytes with the header first, either byte order; `base` makes it a split BTF (a module's).

    `pointer_size` forces the size of pointers (4 or 8), otherwise it is found as libbpf does. `name` serves messages.
    Attributes: `count` (ids run from 1 to count-1; a split BTF's own ones from `start_id`), `byteorder`, `name`,
    `base`. Raises MalformedBtf.
    """

    def __init__(
        self, data: bytes, name: str = "BTF", base: Btf | None = None, pointer_size: int | None = None
    ) -> None:
        self.name = name
        self.base = base
        self.count: int
        self._strings_start: int = 0
        self._long_read = 0
        self._pointer_size = pointer_size
        self._cache: dict[int, Type] = {}
        self._members: dict[int, list[tuple[str, int, int, int]]] = {}
        self._enumerators: dict[int, list[tuple[str, int]]] = {}
        self._ids: dict[str, list[int]] = {}
        self._flavored: dict[str, list[int]] | None = None
        if len(data) < HEADER_LEN:
            raise self._bad(f"header not found in {len(data)} bytes")
        self.byteorder = "little" if int.from_bytes(data[:2], "little") == BTF_MAGIC else "big"
        prefix = "<" if self.byteorder == "little" else ">"
        magic, _version, _flags, hdr_len, type_off, type_len, str_off, str_len = Struct(
            prefix + "HBBIIIII"
        ).unpack_from(data)
        if magic != BTF_MAGIC:
            raise self._bad(f"invalid magic {magic:#x}")
        if hdr_len < HEADER_LEN or hdr_len > len(data):
            raise self._bad(f"header of {hdr_len} bytes in {len(data)}")
        if hdr_len + str_off + str_len > len(data) or type_off + type_len > str_off or type_off % 4 or type_len % 4:
            raise self._bad(
                f"sections outside the data (types {type_off}+{type_len}, strings {str_off}+{str_len},"
                f" {len(data)} bytes; truncated?)"
            )
        view = memoryview(data)
        self._strings = bytes(view[hdr_len + str_off : hdr_len + str_off + str_len])
        self._check_strings()
        self._strings_start = base._strings_start + len(base._strings) if base else 0
        layout = self._layout(data, prefix, hdr_len)
        self._words = array("I")
        self._words.frombytes(view[hdr_len + type_off : hdr_len + type_off + type_len])
        if self.byteorder != sys.byteorder:
            self._words.byteswap()
        self.start_id = base.count if base else 1
        self._places = self._walk(layout)
        self.count = self.start_id + len(self._places)
        self._names: Names | None = None
        self._names_are_whole = True

    # -- opening

    def _bad(self, what: str) -> MalformedBtf:
        return MalformedBtf(f"{self.name}: {what}")

    def _check_strings(self) -> None:
        strings = self._strings
        if not strings:
            if self.base is None:
                raise self._bad("empty string section")
        elif strings[-1] or (self.base is None and strings[0]):
            raise self._bad("string section does not start and end with NUL")

    def _layout(self, data: bytes, prefix: str, hdr_len: int) -> tuple[tuple[int, int], ...]:
        """Sizes by kind: the known ones, and for unknown kinds what the 2026 layout section says (struct
        btf_layout).
        """
        if hdr_len < HEADER_LEN + 8:
            return _EXTRA_WORDS
        offset, length = Struct(prefix + "II").unpack_from(data, HEADER_LEN)
        if not length:
            return _EXTRA_WORDS
        start = hdr_len + offset
        if offset % 4 or length % 4 or start + length > len(data):
            raise self._bad(f"layout section {offset}+{length} is unaligned or outside the data")
        entry = Struct(prefix + "BBH")  # info_sz, elem_sz in bytes, flags
        rows = [(fixed, each) for fixed, each, _ in entry.iter_unpack(data[start : start + length])]
        known = len(_EXTRA_WORDS)
        if any(fixed % 4 or each % 4 for fixed, each in rows[known:128]):
            raise self._bad("layout section with sizes that are no multiples of 4")
        return _EXTRA_WORDS + tuple((fixed // 4, each // 4) for fixed, each in rows[known:128])

    def _walk(self, layout: tuple[tuple[int, int], ...]) -> array[int]:
        """Where each type starts, in words. This loop is the cost of opening: keep it at one lookup a type."""
        words, strides = self._words, _Strides(layout)
        places = array("I")
        append = places.append
        place, end = 0, len(words)
        try:
            while place < end:
                append(place)
                place += strides[words[place + 1]]
        except IndexError:
            raise self._bad(f"type [{self.start_id + len(places) - 1}] is cut off or of an unknown kind") from None
        if place != end:
            raise self._bad(f"type [{self.start_id + len(places) - 1}] runs over the end of the type section")
        return places

    # -- strings and names

    def string_bytes(self, offset: int) -> bytes:
        """The string at `offset`, without its NUL."""
        if offset < self._strings_start and self.base is not None:
            return self.base.string_bytes(offset)
        start = offset - self._strings_start
        if start >= len(self._strings):
            raise self._bad(f"string offset {offset} outside the string section")
        end = self._strings.index(b"\0", start)
        if end - start > _LONG_NAME:
            self._long_read += end - start
            if self._long_read > _MAX_NAME_BYTES:
                raise self._bad("names lie inside of each other, and are too long")
        return self._strings[start:end]

    def string(self, offset: int) -> str:
        """The string at `offset` as text."""
        start = offset - self._strings_start
        end = self._strings.find(b"\0", start, start + _LONG_NAME) if start > 0 else -1
        if end >= 0:  # of usual length, as nearly all are
            return self._strings[start:end].decode("utf-8", "surrogateescape")
        return self.string_bytes(offset).decode("utf-8", "surrogateescape") if offset else ""

    def _all_strings(self) -> bytes:
        return (self.base._all_strings() if self.base else b"") + self._strings

    def _index_names(self) -> Names:
        """Name offsets of the own types as an array's bytes; also notes whether one points into the middle of a
        string.
        """
        words = self._words
        names = array("I", map(words.__getitem__, self._places))
        before = b"\0" + self._all_strings()
        try:
            self._names_are_whole = not any(map(before.__getitem__, names))
        except IndexError:
            raise self._bad("a type's name lies outside the string section") from None
        if not self._names_are_whole:
            self._read_all_names(names)
        self._names = Names(self._strings, names.tobytes())
        return self._names

    def index_all_names(self) -> None:
        """Make every look-up by name quick (`IndexedNames`), where that can be done."""
        names = self._names or self._index_names()
        if self.base is None and self._names_are_whole:
            with suppress(ValueError):
                self._names = IndexedNames(names.strings, names.names)

    def _string_offsets(self, names: Names, essential: str) -> set[int]:
        """Offsets of all strings whose essential name is `essential`, in the base's strings and the own ones."""
        base = self.base
        found = base._string_offsets(base._names or Names(base._strings, b""), essential) if base else set()
        found.update(self._flavored_names().get(essential, ()))
        if essential and essential_name(essential) == essential:
            own = names.offsets(essential.encode("utf-8", "surrogateescape"))
            found.update(self._strings_start + at for at in own)
        return found

    def _flavored_names(self) -> dict[str, list[int]]:
        """Offsets of the strings that carry a flavor, by essential name; a kernel has a few dozen."""
        if self._flavored is None:
            self._flavored = {}
            strings = self._strings
            at = strings.find(b"___")
            while at >= 0:
                start, end = strings.rfind(b"\0", 0, at) + 1, strings.index(b"\0", at)
                name = strings[start:end].decode("utf-8", "surrogateescape")
                essential = essential_name(name)
                if essential != name:
                    self._flavored.setdefault(essential, []).append(self._strings_start + start)
                at = strings.find(b"___", end)
        return self._flavored

    def ids_by_essential_name(self, essential: str) -> list[int]:
        """Own type ids whose name without flavor is `essential`, rising; a split BTF's base is not searched."""
        known = self._ids.get(essential)
        if known is not None:
            return known
        names = self._names or self._index_names()
        if not self._names_are_whole:
            return self._ids.get(essential, [])
        offsets = self._string_offsets(names, essential)
        ids: list[int] = []
        if (
            len(offsets) > _FEW
        ):  # a name of its own for each of many types: one pass over all is cheaper than many searches
            ids = [self.start_id + at for at, offset in enumerate(array("I", names.names)) if offset in offsets]
        else:
            for offset in offsets:
                ids += [self.start_id + at for at in names.types(offset)]
            ids.sort()
        self._ids[essential] = ids
        return ids

    def _read_all_names(self, names: array[int]) -> None:
        """The slow way, for a BTF where a name begins inside of another string: find() would not see it there."""
        read = 0
        for id_, offset in enumerate(names, self.start_id):
            text = self.string(offset)
            read += len(text)
            if read > _MAX_NAME_BYTES:
                raise self._bad("names lie inside of each other, and are too long")
            if text:
                self._ids.setdefault(essential_name(text), []).append(id_)

    def find(self, name: str, kind: int) -> int | None:
        """The first id with exactly that name and kind, the base's first (btf__find_by_name_kind)."""
        if self.base is not None:
            found = self.base.find(name, kind)
            if found is not None:
                return found
        for id_ in self.ids_by_essential_name(essential_name(name)):
            if self.kind(id_) == kind and self.type(id_).name == name:
                return id_
        return None

    # -- types

    def _place(self, id_: int) -> int:
        index = id_ - self.start_id
        if not 0 <= index < len(self._places):
            raise self._bad(f"type id {id_} does not exist ({self.count} types)")
        return self._places[index]

    def kind(self, id_: int) -> int:
        """The kind of a type, without parsing it."""
        if id_ < self.start_id:
            return self.base.kind(id_) if self.base else (BTF_KIND_UNKN if id_ == 0 else self.type(id_).kind)
        return self._words[self._place(id_) + 1] >> 24 & 0x7F

    def type(self, id_: int) -> Type:
        """The type of an id; id 0 is void (BTF_KIND_UNKN)."""
        known = self._cache.get(id_)
        if known is not None:
            return known
        if id_ < self.start_id and self.base is not None:
            return self.base.type(id_)
        if id_ == 0:
            found = Type(0, "", 0, 0, 0)
        else:
            place = self._place(id_)
            words = self._words
            found = Type(id_, self.string(words[place]), words[place + 1], words[place + 2], place)
            if found.kind >= len(KIND_NAMES):
                raise self._bad(f"type [{id_}] is of unknown kind {found.kind}")
        self._cache[id_] = found
        return found

    def _owner(self, t: Type) -> Btf:
        return self.base._owner(t) if self.base is not None and t.id < self.start_id else self

    def members(self, t: Type) -> list[tuple[str, int, int, int]]:
        """Members of a struct or union: (name, type id, bit offset, bitfield size or 0)."""
        btf = self._owner(t)
        known = btf._members.get(t.id)
        if known is None:
            words, string, first = btf._words, btf.string, t.place + 3
            known = []
            for at in range(first, first + 3 * t.vlen, 3):
                offset = words[at + 2]
                if t.kflag:  # btf_member_bit_offset, btf_member_bitfield_size
                    known.append((string(words[at]), words[at + 1], offset & 0xFFFFFF, offset >> 24))
                else:
                    known.append((string(words[at]), words[at + 1], offset, 0))
            btf._members[t.id] = known
        return known

    def enumerators(self, t: Type) -> list[tuple[str, int]]:
        """Enumerators: (name, value) with the value as stored: signed 32 bits for enum, unsigned 64 for enum64."""
        btf, step = self._owner(t), 3 if t.kind == BTF_KIND_ENUM64 else 2
        known, words, string = btf._enumerators.get(t.id), btf._words, btf.string
        if known is None:
            places = range(t.place + 3, t.place + 3 + step * t.vlen, step)
            if step == 3:
                known = [(string(words[at]), words[at + 1] | words[at + 2] << 32) for at in places]
            else:
                known = [(string(words[at]), (words[at + 1] ^ 0x80000000) - 0x80000000) for at in places]
            btf._enumerators[t.id] = known
        return known

    def array(self, t: Type) -> tuple[int, int, int]:
        """An array: (element type id, index type id, number of elements)."""
        btf = self._owner(t)
        return btf._words[t.place + 3], btf._words[t.place + 4], btf._words[t.place + 5]

    def int_data(self, t: Type) -> tuple[int, int, int]:
        """An int: (encoding BTF_INT_*, bit offset, bits)."""
        word = self._owner(t)._words[t.place + 3]
        return word >> 24 & 0x0F, word >> 16 & 0xFF, word & 0xFF

    def params(self, t: Type) -> list[tuple[str, int]]:
        """Parameters of a func_proto: (name, type id); a last one ("", 0) means varargs."""
        btf = self._owner(t)
        words, string, first = btf._words, btf.string, t.place + 3
        return [(string(words[at]), words[at + 1]) for at in range(first, first + 2 * t.vlen, 2)]

    def datasec(self, t: Type) -> list[tuple[int, int, int]]:
        """Variables of a datasec: (type id, offset, size)."""
        words, first = self._owner(t)._words, t.place + 3
        return [(words[at], words[at + 1], words[at + 2]) for at in range(first, first + 3 * t.vlen, 3)]

    def linkage(self, t: Type) -> int:
        """Linkage of a var (its extra word) or a func (its vlen): 0 static, 1 global, 2 extern."""
        return self._owner(t)._words[t.place + 3] if t.kind == BTF_KIND_VAR else t.vlen

    def component(self, t: Type) -> int:
        """What a decl_tag is on: a member or parameter index, -1 for the type itself."""
        word = self._owner(t)._words[t.place + 3]
        return (word ^ 0x80000000) - 0x80000000

    def skip_mods(self, id_: int) -> Type:
        """The type behind const, volatile, restrict and type tags."""
        return self._skip(id_, _MODS)

    def skip_mods_and_typedefs(self, id_: int) -> Type:
        """The type behind modifiers and typedefs (skip_mods_and_typedefs)."""
        t = self._cache.get(id_) or self.type(id_)
        return self._skip(t.size, _MODS_AND_TYPEDEFS) if t.kind in _MODS_AND_TYPEDEFS else t

    def _skip(self, id_: int, kinds: frozenset[int]) -> Type:
        for _ in range(_MAX_CHAIN):
            t = self.type(id_)
            if t.kind not in kinds:
                return t
            id_ = t.size
        raise self._bad(f"type [{id_}] is part of an endless chain of modifiers or typedefs")

    # -- sizes

    @property
    def pointer_size(self) -> int:
        """Bytes of a pointer (btf_ptr_sz): as given, else by the size of "long", else this machine's."""
        if self._pointer_size is None:
            self._pointer_size = self._determine_pointer_size()
        return self._pointer_size

    def _determine_pointer_size(self) -> int:
        if self.base is not None:
            return self.base.pointer_size
        words = self._words
        for place in self._places:
            if words[place + 1] >> 24 & 0x7F == BTF_KIND_INT and words[place + 2] in (4, 8):
                name = self.string(words[place])
                if name in _LONG_ALIASES:
                    return words[place + 2]
        return calcsize("P")

    def resolve_size(self, id_: int) -> int:
        """Bytes of a type (btf__resolve_size). CoreError when it has none (void, fwd, func), is too big or loops."""
        count, start = 1, id_
        for _ in range(MAX_RESOLVE_DEPTH):
            t = self.type(id_)
            kind = t.kind
            if kind in _HAS_SIZE or kind == BTF_KIND_PTR:
                size = t.size if kind != BTF_KIND_PTR else self.pointer_size
                if count * size > 0xFFFFFFFF:
                    break
                return count * size
            if kind == BTF_KIND_ARRAY:
                id_, _index, elements = self.array(t)
                count *= elements
                if count > 0xFFFFFFFF:
                    break
            elif kind in _TRANSPARENT_FOR_SIZE:
                id_ = t.size
            else:
                raise CoreError(
                    f"{self.name}: {self.type(start)!r} has no size: it ends in {t!r}", EINVAL, "unresolvable_size"
                )
        else:
            raise CoreError(
                f"{self.name}: {self.type(start)!r} has no size: nested too deep", EINVAL, "unresolvable_size"
            )
        raise CoreError(f"{self.name}: {self.type(start)!r} is larger than 4 GiB", E2BIG, "unresolvable_size")


def load(path: str, base: Btf | None = None) -> Btf:
    """The BTF in a file: raw, or an ELF's `.BTF` (btf__parse). OSError from reading; NotElf, MalformedElf,
    MalformedBtf.
    """
    with open(path, "rb") as file:
        if not is_elf(file.read(4)):
            file.seek(0)
            return Btf(file.read(), path, base)
        import mmap  # an unstripped vmlinux has hundreds of MB, its .BTF five

        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            elf = Elf(data, path)  # type: ignore[arg-type]
            section = elf.section(".BTF")
            if section is None:
                raise MalformedBtf(f"{path}: an ELF file without a .BTF section")
            return Btf(elf.content(section), path, base, 8 if elf.is64 else 4)

"""User space probes: the binary and function a section names, found here and attached to.

A guest holds Python and its libraries, and what the user sends along. Where the binary is not there, whether this
kernel would take the program at all is asked with a stand-in, a function of the C library, and the answer says so.
Sections are read as libbpf's attach_uprobe() and attach_uprobe_multi() read them.
"""

from __future__ import annotations

import ctypes
import os
import struct

from .attach_perf import uprobe_event
from .attempt import Attempt, Gone, NotAttempted, closing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LINK_CREATE, _MULTI_RETURN = 28, 1
_SHT_SYMTAB, _SHT_DYNSYM, _STT_FUNC = 2, 11, 2
_STAND_IN = "getpid"  # in every C library, and nobody here calls it
_WORK = "/tmp"  # where `exec` puts the files a user sends
_MOST = 1000


def uprobe(attempt: Attempt) -> Callable[[], None]:
    """Attach as a perf event."""
    path, offsets = _place(attempt)
    return uprobe_event(attempt.fd, path, offsets[0], attempt.kind.startswith("uret"))


def uprobe_multi(attempt: Attempt) -> Callable[[], None]:
    """Attach to all functions that match, by one link."""
    path, offsets = _place(attempt)
    name = ctypes.create_string_buffer(path.encode())
    places = (ctypes.c_uint64 * len(offsets))(*offsets)
    flags = _MULTI_RETURN if attempt.kind.startswith("uret") else 0
    attr = struct.pack(
        "=IIIIQQQQIII", attempt.fd, 0, attempt.attach_type, 0, ctypes.addressof(name), ctypes.addressof(places), 0, 0,
        len(offsets), flags, 0,
    )  # fmt: skip
    return closing(attempt.bpf.call(_LINK_CREATE, attr))


def _place(attempt: Attempt) -> tuple[str, list[int]]:
    """The file, and the offsets in it of what the section names; Gone when the file is here and has no such function.
    """
    binary, colon, function = (attempt.target or "").partition(":")
    if not colon:
        return stand_in(attempt, "the section names no function of a binary")
    path = find_binary(binary)
    if path is None:
        return stand_in(attempt, "%s is not here" % binary)
    offsets = _offsets(path, function, many=".multi" in attempt.kind or ".session" in attempt.kind)
    if not offsets:
        raise Gone("symbol gone: %s has no function %s" % (path, function))
    return path, offsets


def stand_in(attempt: Attempt, why: str) -> tuple[str, list[int]]:
    """A function of the C library, noted with the reason; NotAttempted where there is none."""
    library = _c_library()
    offsets = _offsets(library, _STAND_IN, many=False) if library else []
    if library is None or not offsets:
        raise NotAttempted(why)
    attempt.stand_in = "%s: tried on %s() of %s" % (why, _STAND_IN, os.path.basename(library))
    return library, offsets


def _c_library() -> str | None:
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        paths = [line.split(None, 5)[5].rstrip("\n") for line in file if "/libc.so" in line or "/libc-" in line]
    return paths[0] if paths else None


def find_binary(name: str) -> str | None:
    """The file of an absolute path, or of a bare name among the libraries or commands here."""
    if name.startswith("/"):
        return name if os.path.isfile(name) else None
    library = _c_library()
    beside = [os.path.dirname(library)] if library else []
    places = [*beside, "/usr/lib64", "/usr/lib"] if ".so" in name else ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
    return next((path for place in [_WORK, *places] if os.path.isfile(path := place + "/" + name)), None)


def _offsets(path: str, function: str, many: bool) -> list[int]:
    """Offsets in the file: of a name with an offset (`name+4`, `name@VERSION`), of a plain number, of a glob."""
    if function[:1].isdigit():
        return [int(function, 0)]
    if many:
        from fnmatch import fnmatchcase

        found = [offset for name, offset in functions(path) if fnmatchcase(name, function)]
        return list(dict.fromkeys(found))[:_MOST]
    name, _, more = function.partition("+")
    name = name.partition("@")[0]
    return [offset + int(more or "0", 0) for own, offset in functions(path) if own == name][:1]


def functions(path: str) -> Iterator[tuple[str, int]]:
    """Name and file offset of every function an ELF file defines (elf_find_func_offset(): st_value less the section's
    address, plus its place in the file). Nothing for what is no 64-bit ELF of this byte order.
    """
    with open(path, "rb") as file:
        data = file.read()
    if data[:5] != b"\x7fELF\x02":
        return
    start, = struct.unpack_from("=Q", data, 40)
    size, count = struct.unpack_from("=HH", data, 58)
    sections = [struct.unpack_from("=IIQQQQIIQQ", data, start + number * size) for number in range(count)]
    for _, kind, _, _, offset, length, link, _, _, entry in sections:
        if kind not in (_SHT_SYMTAB, _SHT_DYNSYM):
            continue
        names = sections[link][4]
        for at in range(offset, offset + length, entry):
            name, info, _, index, value, _ = struct.unpack_from("=IBBHQQ", data, at)
            if info & 15 == _STT_FUNC and 0 < index < count:
                end = data.index(b"\0", names + name)
                home = sections[index]
                yield data[names + name : end].decode("utf-8", "replace"), value - home[3] + home[4]

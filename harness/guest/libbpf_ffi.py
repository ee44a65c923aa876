"""libbpf.so.1 through ctypes: its functions, its debug output, and the doors it has to the kernel.

libbpf's code is not touched. What is changed are three slots of its global offset table: `syscall` and `close` lead
through a callback of ours, so that a caller sees each bpf(2) request of the real libbpf and may answer one in the
kernel's place; `gzopen`, by which it reads the system's Kconfig, lets a caller say where that lies. The slots are found
as the dynamic linker finds them (ELF gABI, "Dynamic Linking"; struct link_map in glibc's <link.h>).
"""

from __future__ import annotations

import ctypes
import os
from ctypes import CFUNCTYPE, POINTER, c_bool, c_char_p, c_int, c_long, c_size_t, c_uint32, c_ulong, c_void_p

from .errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DEFAULT_PATH = "libbpf.so.1"

# name -> (result, arguments), as libbpf.h and btf.h declare them. Every name is in 1.0 and later.
_PROTOTYPES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "bpf_object__open_mem": (c_void_p, (c_char_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__btf": (c_void_p, (c_void_p,)),
    "bpf_object__btf_fd": (c_int, (c_void_p,)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__next_map": (c_void_p, (c_void_p, c_void_p)),
    "btf__raw_data": (c_void_p, (c_void_p, POINTER(c_uint32))),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__section_name": (c_char_p, (c_void_p,)),
    "bpf_program__autoload": (c_bool, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__insns": (c_void_p, (c_void_p,)),
    "bpf_program__insn_cnt": (c_size_t, (c_void_p,)),
    "bpf_program__type": (c_int, (c_void_p,)),
    "bpf_program__expected_attach_type": (c_int, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_map__attach_struct_ops": (c_void_p, (c_void_p,)),
    "bpf_map__name": (c_char_p, (c_void_p,)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__type": (c_int, (c_void_p,)),
    "bpf_map__max_entries": (c_uint32, (c_void_p,)),
    "bpf_map__set_max_entries": (c_int, (c_void_p, c_uint32)),
    "bpf_map__key_size": (c_uint32, (c_void_p,)),
    "bpf_map__value_size": (c_uint32, (c_void_p,)),
    "bpf_map__set_value_size": (c_int, (c_void_p, c_uint32)),
    "bpf_map__is_internal": (c_bool, (c_void_p,)),
    "bpf_map__inner_map": (c_void_p, (c_void_p,)),
    "bpf_map__set_pin_path": (c_int, (c_void_p, c_char_p)),
    "bpf_map__initial_value": (c_void_p, (c_void_p, POINTER(c_size_t))),
    "libbpf_bpf_prog_type_str": (c_char_p, (c_int,)),
    "libbpf_bpf_attach_type_str": (c_char_p, (c_int,)),
    "libbpf_bpf_map_type_str": (c_char_p, (c_int,)),
    "libbpf_version_string": (c_char_p, ()),
    "libbpf_set_print": (c_void_p, (c_void_p,)),
    "libbpf_register_prog_handler": (c_int, (c_char_p, c_int, c_int, c_void_p)),
    "libbpf_unregister_prog_handler": (c_int, (c_int,)),
}

# int (*libbpf_print_fn_t)(enum libbpf_print_level, const char *, va_list): a va_list argument is a pointer on x86_64
# (array type), arm64 (a composite above 16 bytes goes by reference, AAPCS64 6.8.2), riscv64, s390x and ppc64; so it can
# be handed to vsnprintf as one.
_PRINT = CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)
# long syscall(long number, ...): variadic integer arguments travel as named ones do in the same ABIs.
_SYSCALL = CFUNCTYPE(c_long, *([c_long] * 7), use_errno=True)
_CLOSE = CFUNCTYPE(c_int, c_int, use_errno=True)
_GZOPEN = CFUNCTYPE(c_void_p, c_char_p, c_char_p, use_errno=True)

_PRINT_BUFFER = 64 * 1024

# d_tag values of the dynamic section (ELF gABI).
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 0, 2, 5, 6, 7, 8, 23
_SIZEOF_RELA, _SIZEOF_SYM = 24, 24
_PROT_READ, _PROT_WRITE = 1, 2


class _LinkMap(ctypes.Structure):
    """struct link_map of glibc's <link.h>: what dlopen() returns a pointer to."""

    _fields_ = (("l_addr", c_ulong), ("l_name", c_char_p), ("l_ld", c_void_p))


class OpenOpts(ctypes.Structure):
    """struct bpf_object_open_opts up to kernel_log_level: libbpf accepts any size whose unknown tail is zero
    (OPTS_VALID).
    """

    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", c_bool),
        ("pin_root_path", c_char_p),
        ("reserved", c_uint32),
        ("kconfig", c_char_p),
        ("btf_custom_path", c_char_p),
        ("kernel_log_buf", c_void_p),
        ("kernel_log_size", c_size_t),
        ("kernel_log_level", c_uint32),
    )

    def __init__(self, **fields: Any) -> None:
        super().__init__(sz=ctypes.sizeof(OpenOpts), **fields)


class Library:
    """A loaded libbpf. `version` is "1.1.2"; each function of the table above is an attribute.

    One per process: the patched slots and the print callback belong to the shared object, not to a caller. `syscall`
    and `close` are the doors (None: straight through), `kconfig_path` is read where libbpf looks for the system's
    Kconfig (None: where it lies), `on_print` receives (level, text) of each message, `trouble` is what went wrong in
    one of these. Raises Unsupported when there is no such library, or it lacks a function (older than 1.0).
    """

    def __init__(self, path: str = DEFAULT_PATH) -> None:
        try:
            self._dll = ctypes.CDLL(path, use_errno=True)
            for name, (result, arguments) in _PROTOTYPES.items():
                function = getattr(self._dll, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        except (OSError, AttributeError) as error:
            raise Unsupported(f"libbpf cannot be used: {error}") from error
        self._link = ctypes.cast(ctypes.c_void_p(self._dll._handle), POINTER(_LinkMap)).contents
        self.version = self._version()
        self.syscall: Callable[..., int] | None = None
        self.close: Callable[[int], int] | None = None
        self.on_print: Callable[[int, str], None] | None = None
        self.kconfig_path: str | None = None
        self.trouble: BaseException | None = None
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.restype, self._libc.syscall.argtypes = c_long, (c_long,) * 7
        self._libc.vsnprintf.argtypes = (c_void_p, c_size_t, c_void_p, c_void_p)
        self._text = ctypes.create_string_buffer(_PRINT_BUFFER)
        self._callbacks = (_PRINT(self._print), _SYSCALL(self._syscall), _CLOSE(self._close), _GZOPEN(self._gzopen))
        slots = self._slots()
        gzopen = b"gzopen64" if b"gzopen64" in slots else b"gzopen"  # <zlib.h> renames it with large file support
        self._real_gzopen = _GZOPEN(c_ulong.from_address(slots[gzopen][0]).value) if gzopen in slots else None
        self._redirect(slots, dict(zip((b"syscall", b"close", gzopen), self._callbacks[1:])))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def _version(self) -> str:
        """libbpf_version_string() knows major and minor only; the file's own name has the patch level."""
        spelled = self.libbpf_version_string().decode().lstrip("v")
        path = os.path.basename(os.path.realpath(os.fsdecode(self._link.l_name)))
        from_name = path.partition(".so.")[2]
        return from_name if from_name.startswith(spelled) else spelled

    # --- callbacks: nothing may be raised into C, so what goes wrong is kept in `trouble` -----------------------------

    def _print(self, level: int, fmt: int, arguments: int) -> int:
        try:
            if self.on_print is not None:
                self._libc.vsnprintf(self._text, _PRINT_BUFFER, fmt, arguments)
                self.on_print(level, self._text.value.decode("utf-8", "replace"))
        except BaseException as error:
            self.trouble = error
        return 0

    def _syscall(self, number: int, *arguments: int) -> int:
        try:
            if self.syscall is not None:
                return self.syscall(number, *arguments)
            return self.real_syscall(number, *arguments)
        except BaseException as error:
            self.trouble = error
            ctypes.set_errno(5)  # EIO
            return -1

    def _close(self, fd: int) -> int:
        if self.close is not None:
            return self.close(fd)
        return int(self._libc.close(fd))

    def listen(self, on_print: Callable[[int, str], None] | None) -> None:
        """Have libbpf's messages told to `on_print`, whoever listened before; None: to nobody."""
        self.on_print = on_print
        self.libbpf_set_print(ctypes.cast(self._callbacks[0], c_void_p))

    def _gzopen(self, path: bytes, mode: bytes) -> int | None:
        if self.kconfig_path is not None:
            path = os.fsencode(self.kconfig_path)
        return self._real_gzopen(path, mode) if self._real_gzopen is not None else None

    def real_syscall(self, number: int, *arguments: int) -> int:
        """syscall(2) itself: -1 and ctypes' errno on failure, as in C."""
        return int(self._libc.syscall(number, *arguments))

    # --- global offset table ------------------------------------------------------------------------------------------

    def _dynamic(self) -> dict[int, int]:
        """The dynamic section as tag -> value; addresses are absolute (glibc relocates them in place on most machines
        only).
        """
        words = ctypes.cast(self._link.l_ld, POINTER(c_ulong))
        base, entries, index = self._link.l_addr, {}, 0
        while words[index] != _DT_NULL:
            entries[words[index]] = words[index + 1]
            index += 2
        for tag in (_DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_JMPREL):
            if tag in entries and entries[tag] < base:
                entries[tag] += base
        return entries

    def _slots(self) -> dict[bytes, list[int]]:
        """Addresses of the words that hold each imported function's address, by the function's name."""
        dynamic = self._dynamic()
        slots: dict[bytes, list[int]] = {}
        for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
            start = dynamic.get(table, 0)
            for record in range(start, start + dynamic.get(size, 0), _SIZEOF_RELA):
                offset, info, _addend = (c_ulong * 3).from_address(record)
                symbol = dynamic[_DT_SYMTAB] + (info >> 32) * _SIZEOF_SYM
                if info >> 32:
                    name = ctypes.string_at(dynamic[_DT_STRTAB] + c_uint32.from_address(symbol).value)
                    slots.setdefault(name, []).append(self._link.l_addr + offset)
        return slots

    def _redirect(self, slots: dict[bytes, list[int]], doors: dict[bytes, Any]) -> None:
        """Point the slots at our callbacks. Debian links with -z relro -z now: their page is read-only until we ask."""
        page = os.sysconf("SC_PAGE_SIZE")
        for name, callback in doors.items():
            if name not in slots:
                raise Unsupported(
                    f"libbpf {self.version} does not import {name.decode()}(): its requests cannot be seen"
                )
            for slot in slots[name]:
                start = slot & -page
                if self._libc.mprotect(c_void_p(start), c_size_t(page), _PROT_READ | _PROT_WRITE):
                    raise Unsupported(f"libbpf's global offset table stays read-only (errno {ctypes.get_errno()})")
                c_ulong.from_address(slot).value = ctypes.cast(callback, c_void_p).value or 0

"""The second loader: the real libbpf.so.1. Same facts (docs/facts.md) as the first, from somebody else's code.

The object is opened and loaded by libbpf as a whole, with its own autoload set; `libbpf_doors` sees to it that one refused program or map
does not hide the others. What libbpf gives up without asking the kernel is settled here:

- a program whose attach target cannot be found ends bpf_object__load(). It is noted, and the object loaded again with a section handler
  for that program that looks for no target (libbpf_register_prog_handler), so that relocation still covers it;
- a CO-RE relocation or an extern that is fatal ends it for all: each program is then tried alone (every other one's autoload off).
"""

from __future__ import annotations

import ctypes
import errno as _errno
import time

from . import libbpf_facts
from .errors import GuestError
from .libbpf_debug_log import DebugLog
from .libbpf_doors import Doors
from .libbpf_ffi import DEFAULT_PATH, Library, OpenOpts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_libraries: dict[str, Library] = {}

# veristat's fixup_obj(): programs leave the size of these to whoever loads them; 0 is right for maps that take none.
_SIZELESS_MAPS = frozenset(("sk_storage", "task_storage", "inode_storage", "cgrp_storage", "cgroup_storage", "percpu_cgroup_storage", "struct_ops"))


def library(path: str = DEFAULT_PATH) -> Library:
    """libbpf, loaded once per process. Unsupported when there is none."""
    if path not in _libraries:
        _libraries[path] = Library(path)
        _raise_open_files()
    return _libraries[path]


def _raise_open_files() -> None:
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Load:
    """One open and load of the object. `refused` (section -> type, attach type) are sections whose programs look for no target.

    After `run()`: `error` (0 or a positive errno, of opening when `obj` is None), `log`, `doors`, `progs` and `maps` (names -> pointers),
    `map_fds` (descriptors as the instructions hold them -> names).
    """

    def __init__(self, lib: Library, bpf: Any, request: dict[str, Any]) -> None:
        self.lib = lib
        self.request = request
        self.doors = Doors(lib, bpf)
        self.log = DebugLog()
        self.obj: int | None = None
        self.error = 0
        self.seconds = {"open": 0.0, "load": 0.0}
        self.progs: dict[str, int] = {}
        self.maps: dict[str, int] = {}
        self.autoload: dict[str, bool] = {}
        self.map_fds: dict[int, str] = {}
        self._handlers: list[int] = []

    def open(self, data: bytes, kconfig: str | None, btf_path: str | None, refused: dict[str, tuple[int, int]]) -> None:
        """bpf_object__open_mem(), then what a caller may change before loading."""
        started = time.perf_counter()
        lib = self.lib
        lib.on_print = self.log.feed
        for section, (prog_type, attach_type) in refused.items():
            handler = lib.libbpf_register_prog_handler(section.encode(), prog_type, attach_type, None)
            self._handlers.append(handler)
        options = OpenOpts(
            object_name=self.request["name"].encode(),
            kconfig=kconfig.encode() if kconfig is not None else None,
            btf_custom_path=btf_path.encode() if btf_path is not None else None,
        )
        self.obj = lib.bpf_object__open_mem(data, len(data), ctypes.byref(options))
        if self.obj is None:
            self.error = ctypes.get_errno() or _errno.EINVAL
            return
        self.progs = {lib.bpf_program__name(prog).decode(): prog for prog in self._each(lib.bpf_object__next_program)}
        self.maps = {lib.bpf_map__name(m).decode(): m for m in self._each(lib.bpf_object__next_map)}
        self.autoload = {name: lib.bpf_program__autoload(prog) for name, prog in self.progs.items()}
        for pointer in self.maps.values():
            self._fix_map(pointer)
        self.seconds["open"] = time.perf_counter() - started

    def _each(self, following: Callable[[int, int | None], int | None]) -> Iterator[int]:
        item = following(self.obj or 0, None)
        while item is not None:
            yield item
            item = following(self.obj or 0, item)

    def _fix_map(self, pointer: int) -> None:
        lib = self.lib
        lib.bpf_map__set_pin_path(pointer, None)
        kind = (lib.libbpf_bpf_map_type_str(lib.bpf_map__type(pointer)) or b"").decode()
        if lib.bpf_map__max_entries(pointer) == 0 and kind not in _SIZELESS_MAPS:
            lib.bpf_map__set_max_entries(pointer, 1)

    def only(self, name: str) -> None:
        """Leave just this program's autoload on."""
        for other, prog in self.progs.items():
            self.lib.bpf_program__set_autoload(prog, other == name and self.autoload[other])

    def run(self, wanted: Callable[[str], bool]) -> None:
        """bpf_object__load() behind the doors."""
        started = time.perf_counter()
        doors = self.doors
        doors.prog_of_insns, doors.is_map, doors.wanted = self._prog_of_insns, self._is_map, wanted
        with doors:
            if self.lib.bpf_object__load(self.obj) != 0:
                self.error = ctypes.get_errno() or _errno.EINVAL
        self.seconds["load"] = time.perf_counter() - started

    def _prog_of_insns(self, address: int) -> str | None:
        for name, prog in self.progs.items():
            if self.lib.bpf_program__insns(prog) == address:
                if not self.map_fds:  # libbpf forgets them when the load fails later
                    self.map_fds = {self.lib.bpf_map__fd(pointer): own for own, pointer in self.maps.items()}
                return name
        return None

    def _is_map(self, name: str, attributes: tuple[int, ...]) -> str | None:
        """The object's map that a request creates: by kernel name (15 bytes), or by shape where the kernel knows no names."""
        lib = self.lib
        for own, pointer in self.maps.items():
            for candidate in (pointer, lib.bpf_map__inner_map(pointer)):
                if candidate is None:
                    continue
                full = lib.bpf_map__name(candidate).decode("latin-1")
                shape = (lib.bpf_map__type(candidate), lib.bpf_map__key_size(candidate), lib.bpf_map__value_size(candidate))
                if (name and name == full[:15]) or (not name and shape == attributes[:3]):
                    return own
        return None

    def close(self) -> None:
        """Give everything back."""
        if self.obj is not None:
            self.lib.bpf_object__close(self.obj)
            self.obj = None
        self.doors.release()
        for handler in self._handlers:
            if handler >= 0:
                self.lib.libbpf_unregister_prog_handler(handler)
        self._handlers.clear()
        self.lib.on_print = None


class Outcome:
    """What became of one program: `load` (the Load it was judged in), `alone`, and for a refusal before the kernel `stage`,
    `errno`, `error`."""

    __slots__ = ("alone", "errno", "error", "load", "stage")

    def __init__(self, load: Load, stage: str | None = None, errno: int | None = None, error: str | None = None) -> None:
        self.load = load
        self.alone = False
        self.stage = stage
        self.errno = errno
        self.error = error


class Judge:
    """One request. `report` is called for each Load while its descriptors are open, to finish the programs it settled."""

    def __init__(self, machine: Any, data: bytes, request: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> None:
        self.machine = machine
        self.data = data
        self.request = request
        self.progress = progress
        self.lib = library(request.get("libbpf") or DEFAULT_PATH)
        self.facts = libbpf_facts.Facts(self.lib, machine, data, request)
        self.settled: set[str] = set()
        self.refused: dict[str, tuple[int, int]] = {}

    def judge(self) -> dict[str, Any]:
        load = self._load()
        try:
            while load.error and self._note_refused(load):
                self._finish(load)
                load.close()
                load = self._load()
            self._finish(load)
            self.facts.object(load)
        finally:
            load.close()
        if self.facts.fatal_for_all:
            self._alone(list(load.progs))
        return self.facts.result()

    def _load(self, only: str | None = None) -> Load:
        load = Load(self.lib, self.machine.bpf, self.request)
        load.open(self.data, self.machine.kconfig_override, self.machine.btf_override, self.refused)
        if load.obj is None:
            return load
        try:
            self.facts.apply_settings(load)
        except GuestError:
            load.close()
            raise
        if only is not None:
            load.only(only)
        load.run(self._wanted)
        return load

    def _wanted(self, name: str) -> bool:
        chosen = self.request.get("progs")
        if name in self.settled or name in (self.request.get("skip_progs") or ()) or (chosen is not None and name not in chosen):
            return False
        self.progress({"type": "progress", "phase": "verdict", "prog": name})
        return True

    def _note_refused(self, load: Load) -> bool:
        """Whether libbpf gave up at a program it had not given up at before: then it is worth loading again."""
        if load.log.refused is None:
            return False
        name, errno = load.log.refused
        prog = load.progs[name]
        section = self.lib.bpf_program__section_name(prog).decode().lstrip("?")
        if section in self.refused:
            return False
        kind = self.lib.bpf_program__type(prog)
        self.refused[section] = (kind or 1, self.lib.bpf_program__expected_attach_type(prog))
        for other, pointer in load.progs.items():
            if load.autoload[other] and self.lib.bpf_program__section_name(pointer).decode().lstrip("?") == section:
                outcome = Outcome(load, "pre_verifier", errno, "\n".join(_last_words(load.log.warnings, name)))
                self.facts.refusal(other, outcome)
                self.settled.add(other)
        return True

    def _finish(self, load: Load, alone: bool = False) -> None:
        """Programs the kernel has answered for in this load; their evidence is taken while its descriptors are open."""
        for name in load.doors.verdicts:
            if name not in self.settled:
                self.settled.add(name)
                self.facts.program(name, load, alone, self.progress)
        self.facts.relocated(load)

    def _alone(self, names: list[str]) -> None:
        for name in names:
            if name in self.settled:
                continue
            load = self._load(name)
            try:
                if load.autoload.get(name):
                    self._finish(load, alone=True)
                    if load.error and name not in self.settled:
                        self.facts.refusal(name, self.facts.refusal_of(load))
            finally:
                load.close()


def _last_words(warnings: list[str], prog: str) -> list[str]:
    """What libbpf said of that program last."""
    return [text for text in warnings if text.startswith("prog '" + prog + "'")][-3:] or warnings[-1:]


def judge(machine: Any, data: bytes, request: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Facts about `data` as libbpf sees it. `machine` gives `bpf`, `facts()`, and what libbpf cannot find in this guest by itself
    (`kconfig_override`, `btf_override`); `request["libbpf"]` names another library than libbpf.so.1. Raises Unsupported
    when there is no libbpf."""
    return Judge(machine, data, request, progress).judge()


def version(path: str = DEFAULT_PATH) -> str | None:
    """The version of the libbpf that `judge` would use, None when there is none."""
    try:
        return library(path).version
    except GuestError:
        return None

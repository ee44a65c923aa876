"""The second loader: the real libbpf.so.1. Same facts (docs/facts.md) as the first, from somebody else's code.

The object is opened and loaded by libbpf as a whole, with its own autoload set; `libbpf_doors` sees to it that one
refused program or map does not hide the others. What libbpf gives up without asking the kernel is settled here:

- a program whose attach target cannot be found ends bpf_object__load(). It is noted, and the object loaded again with a
  section handler for that program that looks for no target (libbpf_register_prog_handler), so that relocation still
  covers it;
- a CO-RE relocation that is fatal ends it for all: the object is loaded again without the program that holds it.
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
from .libbpf_report import object_name
from .maps import internal_map_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_libraries: dict[str, Library] = {}

# veristat's fixup_obj(): programs leave the size of these to whoever loads them; 0 is right for maps that take none.
_SIZELESS_MAPS = frozenset(
    (
        "sk_storage",
        "task_storage",
        "inode_storage",
        "cgrp_storage",
        "cgroup_storage",
        "percpu_cgroup_storage",
        "struct_ops",
    )
)

_STACK_TRACE_BYTES = 8 * 127  # as our own loader chooses: sysctl kernel.perf_event_max_stack as it comes


def library(path: str = DEFAULT_PATH) -> Library:
    """libbpf, loaded once per process. Unsupported when there is none."""
    if path not in _libraries:
        lib = _libraries[path] = Library(path)
        # Before 1.3 unregistering the last handler leaves a freed table behind (realloc to 0 bytes), and the next
        # registration frees it again: one that matches no section stays for good.
        lib.libbpf_register_prog_handler(b"corematrix/none", 1, 0, None)
        _raise_open_files()
    return _libraries[path]


def _raise_open_files() -> None:
    import resource

    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Load:
    """One open and load of the object.

    After `run()`: `error` (0 or a positive errno, of opening when `obj` is None), `log`, `doors`, `progs` and `maps`
    (names -> pointers).
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
        self._handlers: list[int] = []
        self._left_out: set[str] = set()

    def open(self, data: bytes, machine: Any, refused: dict[str, tuple[int, int]], left_out: set[str]) -> None:
        """bpf_object__open_mem(), then what a caller may change before loading. `refused` (section -> type, attach
        type) are sections whose programs need look for no target, `left_out` programs that are not to be relocated.
        """
        started = time.perf_counter()
        lib = self.lib
        lib.listen(self.log.feed)
        for section, (prog_type, attach_type) in refused.items():
            handler = lib.libbpf_register_prog_handler(section.encode(), prog_type, attach_type, None)
            self._handlers.append(handler)
        options = OpenOpts(
            object_name=object_name(self.request["name"]).encode(),
            btf_custom_path=machine.btf_override.encode() if machine.btf_override is not None else None,
        )
        lib.kconfig_path = machine.kconfig_override
        self.obj = lib.bpf_object__open_mem(data, len(data), ctypes.byref(options))
        if self.obj is None:
            self.error = ctypes.get_errno() or _errno.EINVAL
            return
        self.progs = {lib.bpf_program__name(prog).decode(): prog for prog in self._each(lib.bpf_object__next_program)}
        self.maps = {self._map_name(m): m for m in self._each(lib.bpf_object__next_map)}
        self.autoload = {name: lib.bpf_program__autoload(prog) for name, prog in self.progs.items()}
        for pointer in self.maps.values():
            self._fix_map(pointer)
        self._left_out = left_out
        for name in left_out:
            lib.bpf_program__set_autoload(self.progs[name], False)
        self.seconds["open"] = time.perf_counter() - started

    def _each(self, following: Callable[[int, int | None], int | None]) -> Iterator[int]:
        item = following(self.obj or 0, None)
        while item is not None:
            yield item
            item = following(self.obj or 0, item)

    def _map_name(self, pointer: int) -> str:
        """The name in the kernel: at most 15 bytes; libbpf tells the section's for custom data sections."""
        name = self.lib.bpf_map__name(pointer).decode()
        internal = name.startswith(".") and self.lib.bpf_map__is_internal(pointer)
        return internal_map_name(object_name(self.request["name"]), name) if internal else name

    def _fix_map(self, pointer: int) -> None:
        lib = self.lib
        lib.bpf_map__set_pin_path(pointer, None)
        kind = (lib.libbpf_bpf_map_type_str(lib.bpf_map__type(pointer)) or b"").decode()
        if kind == "stack_trace" and lib.bpf_map__value_size(pointer) == 0:
            lib.bpf_map__set_value_size(pointer, _STACK_TRACE_BYTES)
        if lib.bpf_map__max_entries(pointer) == 0 and kind not in _SIZELESS_MAPS:
            lib.bpf_map__set_max_entries(pointer, 1)

    def run(self, wanted: Callable[[str], bool]) -> None:
        """bpf_object__load() behind the doors."""
        started = time.perf_counter()
        doors = self.doors
        doors.prog_of_insns, doors.map_of, doors.wanted = self._prog_of_insns, self._map_of, wanted
        with doors:
            if self.lib.bpf_object__load(self.obj) != 0:
                self.error = ctypes.get_errno() or _errno.EINVAL
        # Loading turns off what only struct_ops maps use that are not created (bpf_object_adjust_struct_ops_autoload).
        for name, prog in self.progs.items():
            self.autoload[name] &= name in self._left_out or self.lib.bpf_program__autoload(prog)
        self.seconds["load"] = time.perf_counter() - started

    def _prog_of_insns(self, address: int) -> str | None:
        for name, prog in self.progs.items():
            if self.lib.bpf_program__insns(prog) == address:
                return name
        return None

    def _map_of(self, name: str, attributes: tuple[int, ...]) -> str | None:
        """The object's map that a request creates: by kernel name (15 bytes), or by shape where the kernel knows no
        names; of several the first that is not there yet, since libbpf creates them in order.
        """
        lib, found = self.lib, None
        for own, pointer in self.maps.items():
            inner = lib.bpf_map__inner_map(pointer)
            for candidate in (pointer, inner) if inner is not None else (pointer,):
                known = lib.bpf_map__name(candidate).decode("latin-1")[:15]
                sizes = lib.bpf_map__key_size(candidate), lib.bpf_map__value_size(candidate)
                if name == known if name else (lib.bpf_map__type(candidate), *sizes) == attributes[:3]:
                    if own not in self.doors.map_names.values():
                        return own
                    found = found or own
        return found

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
        self.lib.listen(None)
        self.lib.kconfig_path = None


class Judge:
    """One request: the object is loaded as often as libbpf gives it up for a reason that concerns one program only."""

    def __init__(
        self, machine: Any, data: bytes, request: dict[str, Any], progress: Callable[[dict[str, Any]], None]
    ) -> None:
        self._machine = machine
        self._data = data
        self._request = request
        self._progress = progress
        self._lib = library(request.get("libbpf") or DEFAULT_PATH)
        self._facts = libbpf_facts.Facts(self._lib, machine, data, request)
        self._settled: set[str] = set()
        self._refused: dict[str, tuple[int, int]] = {}
        self._left_out: set[str] = set()

    def judge(self) -> dict[str, Any]:
        """The facts. Every descriptor is closed again."""
        while True:
            load = Load(self._lib, self._machine.bpf, self._request)
            try:
                if not self._again(load):
                    return self._facts.result()
            finally:
                load.close()

    def _again(self, load: Load) -> bool:
        """One load; whether another one can tell more."""
        load.open(self._data, self._machine, self._refused, self._left_out)
        if load.obj is not None:
            try:
                self._facts.apply_settings(load)
            except GuestError as error:
                self._facts.give_up(error.stage, error.errno, error.message)
                self._all_refused(load, error.stage, error.errno, error.message)
                return False
            load.run(self._wanted)
        fatal = load.error and load.log.refused is None and not load.doors.sequences
        if fatal:
            self._facts.give_up(*self._facts.reason_to_give_up(load))
        self._facts.learn(load)
        for name in load.doors.verdicts:
            self._settled.add(name)
            self._facts.program(name, load, self._progress)
        self._facts.place_others(load)
        self._facts.attach_struct_ops(load)
        if not load.error:
            return False
        if not fatal:
            return self._note_refused(load)
        return self._note_fatal(load)

    def _wanted(self, name: str) -> bool:
        if name in self._settled or not self._chosen(name):
            return False
        self._progress({"type": "progress", "phase": "verdict", "prog": name})
        return True

    def _chosen(self, name: str) -> bool:
        chosen = self._request.get("progs")
        return name not in (self._request.get("skip_progs") or ()) and (chosen is None or name in chosen)

    def _note_refused(self, load: Load) -> bool:
        """libbpf gave up at a program: note it, have the next load pass it by. False when that did not help before."""
        if load.log.refused is None:
            return False
        name, errno = load.log.refused
        lib = self._lib
        section = _section(lib, load.progs[name])
        if section in self._refused:
            return False
        prog = load.progs[name]
        said = " ".join(load.log.warnings)
        unused = "program isn't referenced anywhere" in said  # a struct_ops program of any type but its own passes
        prog_type = 0 if unused else lib.bpf_program__type(prog)
        self._refused[section] = (prog_type or 1, lib.bpf_program__expected_attach_type(prog))
        unsupported = None if unused else "section" if "missing BPF prog type" in said else "attach_target"
        words = "\n".join(_last_words(load.log.warnings, name))
        for other, pointer in load.progs.items():
            if load.autoload[other] and _section(lib, pointer) == section and other not in self._settled:
                self._settled.add(other)
                if self._chosen(other):
                    self._facts.refusal(load, other, "pre_verifier", errno, words, unsupported)
        return True

    def _note_fatal(self, load: Load) -> bool:
        """A relocation ended it for all: leave out the program that holds it. Nothing more can be said when it is in a
        subprogram (libbpf relocates them whether they are called or not), or when it was something else.
        """
        stage, errno, message, relo = self._facts.reason_to_give_up(load)
        culprit = load.log.decisions[relo].prog if relo is not None else None
        if culprit in load.progs and culprit not in self._left_out:
            self._left_out.add(culprit)
            if self._chosen(culprit):
                self._facts.refusal(load, culprit, stage, errno, message)
            self._settled.add(culprit)
            return True
        self._all_refused(load, stage, errno, message)
        return False

    def _all_refused(self, load: Load, stage: str, errno: int | None, message: str) -> None:
        for name in load.progs:
            if load.autoload[name] and name not in self._settled and self._chosen(name):
                self._facts.refusal(load, name, stage, errno, message)


def _section(lib: Library, prog: int) -> str:
    return str(lib.bpf_program__section_name(prog).decode())


def _last_words(warnings: list[str], prog: str) -> list[str]:
    """What libbpf said of that program last."""
    return [text for text in warnings if text.startswith("prog '" + prog + "'")][-3:] or warnings[-1:]


def judge(
    machine: Any, data: bytes, request: dict[str, Any], progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Facts about `data` as libbpf sees it. `machine` gives `bpf`, `facts()`, and what libbpf cannot find in this guest
    by itself (`kconfig_override`, `btf_override`: paths); `request["libbpf"]` names another library than libbpf.so.1.
    Raises Unsupported when there is no libbpf.
    """
    return Judge(machine, data, request, progress).judge()


def version(path: str = DEFAULT_PATH) -> str | None:
    """The version of the libbpf that `judge` would use, None when there is none."""
    try:
        return library(path).version
    except GuestError:
        return None

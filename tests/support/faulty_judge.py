"""Takes the place of `guest/judge.py` in a test's guest: a request's `name` is the fault to have.

Runs in the guest only, under the guest's rules: no pathlib there.
"""

# ruff: noqa: PTH115, PTH123, PTH208, ARG005, UP031

from __future__ import annotations

import os
import sys
import time


class Machine:
    @classmethod
    def survey(cls, **_places):
        return cls()

    def facts(self):
        return {"release": os.uname().release, "machine": os.uname().machine}


def judge(machine, data, request, progress):
    progress({"type": "progress", "phase": "verdict", "prog": request["name"]})
    return FAULTS[request["name"]](data) or {"type": "facts", "fault": request["name"]}


def _port():
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink("/proc/self/fd/" + name).startswith("/dev/vport"):
                return int(name)
        except OSError:
            continue
    raise AssertionError("no port")


def _write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(_port(), view) :]


def _sysrq(letter):
    with open("/proc/sysrq-trigger", "w") as file:
        file.write(letter)


def _sleep():
    while True:
        time.sleep(1000)


def _eat():
    with open("/proc/sys/vm/panic_on_oom", "w") as file:
        file.write("0")
    kept = []
    while True:
        block = bytearray(1 << 20)
        block[::4096] = b"x" * 256
        kept.append(block)


def _fork():
    while True:
        try:
            if os.fork() == 0:
                _sleep()
        except OSError:
            continue


def _flood():
    with open("/dev/console", "w") as console:
        while True:
            console.write("endless " * 200 + "\n")


def _fill_tmpfs():
    with open("/tmp/full", "wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            pass
    raise MemoryError("the guest's file system is full")


def _header(length, nonce=bytes(16), crc=0, magic=b"CMTX"):
    import struct

    return struct.pack("<4sHHI16sI", magic, 1, 0, length, nonce, crc)


def _frame(payload, nonce=bytes(16)):
    import struct
    import zlib

    payload = struct.pack("<I", len(payload)) + payload
    return _header(len(payload), nonce, zlib.crc32(payload)) + payload


def _twice(data):
    _write(_frame(b'{"type": "facts", "answer": 1}', bytes.fromhex(data.decode())))


def _syscall(number, *words):
    import ctypes

    call = ctypes.CDLL(None, use_errno=True).syscall
    result = call(number, *(ctypes.c_long(word) if isinstance(word, int) else word for word in words))
    if result < 0:
        raise OSError(ctypes.get_errno(), "system call %d" % number)
    return result


def _set(name, value):
    with open("/proc/sys/kernel/" + name, "w") as file:
        file.write(value)


def _insert(data):
    """finit_module(2) by force, of a module of tests/support/faulty_module.py."""
    with open("/tmp/faulty.ko", "wb") as file:
        file.write(data)
    _syscall(313, os.open("/tmp/faulty.ko", os.O_RDONLY), b"", 3)  # IGNORE_MODVERSIONS, IGNORE_VERMAGIC


def _soft_lockup(data):
    _set("watchdog_thresh", "1")
    _insert(data)


def _hung_task():
    """Wait for ever, uninterruptibly, for the lock of a file: a second thread holds it, which is writing from a page
    that a userfaultfd(2) of ours never fills in. We know when it holds the lock, for then we are told of the page.
    """
    import _thread
    import ctypes
    import fcntl
    import mmap
    import struct

    _set("hung_task_timeout_secs", "1")
    fault = _syscall(323, os.O_CLOEXEC)
    fcntl.ioctl(fault, 0xC018AA3F, struct.pack("=QQQ", 0xAA, 0, 0))  # UFFDIO_API
    page = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    fcntl.ioctl(fault, 0xC020AA00, struct.pack("=QQQQ", address, 4096, 1, 0))  # UFFDIO_REGISTER, missing pages
    file = os.open("/tmp/locked", os.O_RDWR | os.O_CREAT)
    _thread.start_new_thread(_syscall, (1, file, address, 4096))  # write(2)
    os.read(fault, 32)
    os.write(file, b"x")


FAULTS = {
    "none": lambda data: None,
    "echo": lambda data: {"type": "facts", "size": len(data), "blob": data.hex()},
    "clock": lambda data: {"type": "facts", "time_ns": time.time_ns()},
    "random": lambda data: {"type": "facts", "bytes": os.urandom(32).hex()},
    "large": lambda data: {"type": "facts", "text": "x" * int(data)},
    "oops": _insert,
    "bug": _insert,
    "soft_lockup": _soft_lockup,
    "hung_task": lambda data: _hung_task(),
    "panic": lambda data: _sysrq("c"),
    "hang": lambda data: _sleep(),
    "late": lambda data: time.sleep(5),
    "spin": lambda data: _spin(),
    "out_of_memory": lambda data: _eat(),
    "fork_bomb": lambda data: _fork(),
    "flood": lambda data: _flood(),
    "full_tmpfs": lambda data: _fill_tmpfs(),
    "exit": lambda data: os._exit(3),
    "power_off": lambda data: _sysrq("o") or _sleep(),
    "fault": lambda data: 1 / 0,
    "garbage": lambda data: _write(b"\0\xff" * 5000),
    "giant": lambda data: _write(_header(0xFFFFFFF0)),
    "half": lambda data: _write(_header(1000) + b"half") or _sleep(),
    "half_and_die": lambda data: _write(_header(1000) + b"half") or _sysrq("c"),
    "checksum": lambda data: _write(_header(8, crc=1) + b"\4\0\0\0{}  "),
    "nonce": lambda data: _write(_frame(b'{"type": "facts"}', b"n" * 16)),
    "no_json": lambda data: _write(_frame(b"{'type': facts}")),
    "no_object": lambda data: _write(_frame(b"[1]")),
    "deep": lambda data: _write(_frame(b'{"a":' * 5000 + b"1" + b"}" * 5000)),
    "hello": lambda data: {"type": "hello"},
    # A day later than that: the kernel takes no time of day that is less than its uptime (do_settimeofday64).
    "clock_1970": lambda data: time.clock_settime(time.CLOCK_REALTIME, 86400.0),
    "stderr": lambda data: sys.stderr.write("\x1b]0;title\x07\x1b[31mred <script>\n") and None,
}


def _spin():
    while True:
        pass

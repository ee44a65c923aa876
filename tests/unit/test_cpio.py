"""The newc writer, held against busybox's cpio and the format's own text."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from harness.image import cpio

MEMBERS = {
    "usr/bin/tool": cpio.file(b"#!/bin/sh\n", executable=True),
    "usr/lib/data": cpio.file(b"abc"),
    "usr-x": cpio.file(b""),
    "lib": cpio.symlink("usr/lib"),
    "dev/console": cpio.character_device(5, 1),
    "proc": cpio.directory(),
}


def test_the_same_members_give_the_same_bytes_in_any_order() -> None:
    backwards = dict(reversed(list(MEMBERS.items())))
    assert cpio.archive(MEMBERS) == cpio.archive(backwards)


def test_busybox_unpacks_it(tmp_path: object) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed")
    listed = subprocess.run([busybox, "cpio", "-tv"], input=cpio.archive(MEMBERS), capture_output=True, check=True)
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    modes = {line[-1] if "->" not in line else line[line.index("->") - 1]: line[0] for line in lines}
    assert modes == {
        "dev": "drwxr-xr-x", "dev/console": "crw-------", "lib": "lrwxrwxrwx", "proc": "drwxr-xr-x",
        "usr": "drwxr-xr-x", "usr-x": "-rw-r--r--", "usr/bin": "drwxr-xr-x", "usr/bin/tool": "-rwxr-xr-x",
        "usr/lib": "drwxr-xr-x",
        "usr/lib/data": "-rw-r--r--",
    }  # fmt: skip


def test_a_directory_comes_before_what_it_holds() -> None:
    archive = cpio.archive(MEMBERS)
    assert archive.index(b"usr\0") < archive.index(b"usr/bin\0") < archive.index(b"usr/bin/tool\0")


def test_every_header_and_body_is_aligned() -> None:
    archive = cpio.archive(MEMBERS)
    place, names = 0, []
    while True:
        assert archive[place : place + 6] == b"070701"
        fields = [int(archive[place + 6 + 8 * n : place + 14 + 8 * n], 16) for n in range(13)]
        size, length = fields[6], fields[11]
        names.append(archive[place + 110 : place + 110 + length - 1].decode())
        place = (place + 110 + length + 3) // 4 * 4
        place = (place + size + 3) // 4 * 4
        if names[-1] == "TRAILER!!!":
            break
    assert place == len(archive)
    assert names[:-1] == sorted(names[:-1], key=lambda name: name.split("/"))


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a//b", "", "a/./b", "a/"])
def test_a_path_that_is_not_plainly_inside_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a relative path"):
        cpio.archive({path: cpio.file(b"")})

"""What a guest is made of, before anything runs: the key of a saved one, and the -cpu for the QEMU at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import boot, payload
from harness.boot import GuestPackages, Recipe
from harness.model.arch import ARCHITECTURES
from harness.store import Store
from harness.vm import qemu
from tests.support import cells

QEMU = """\
#!/bin/sh
case "$*" in
    *--version*) echo 'QEMU emulator version {version}';;
    *-cpu*) for word in {models}; do case " $* " in *" -cpu $word "*) exit 0;; esac; done; exit 1;;
esac
"""


def install(path: Path, *, version: str = "7.2.22 (Debian 1:7.2)", models: str = "qemu64") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(QEMU.format(version=version, models=models))
    path.chmod(0o755)
    return path


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setenv("PATH", f"{install(tmp_path / 'bin' / 'qemu-system-x86_64').parent}:/usr/bin:/bin")
    for name in ("module", "config"):
        (tmp_path / name).write_text(name)
    kernel = replace(cells.kernel(), modules=(tmp_path / "module",), config=tmp_path / "config", btf_sha256="b")
    packages = GuestPackages(paths=(), provenance=({"sha256": "p"},))
    return Recipe(kernel=kernel, packages=packages, store=Store(tmp_path / "cache"), accelerator="tcg")


def of_kernel(**changes: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: replace(recipe, kernel=replace(recipe.kernel, **changes))


def of_spec(**changes: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: replace(recipe, kernel=replace(recipe.kernel, spec=replace(recipe.kernel.spec, **changes)))


def of_arch(**changes: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: of_spec(arch=replace(recipe.kernel.spec.arch, **changes))(recipe)


CHANGES: dict[str, Callable[[Recipe], Recipe]] = {
    "kernel": of_kernel(vmlinuz_sha256="1" * 64),
    "no module": of_kernel(modules=()),
    "no configuration": of_kernel(config=None),
    "another BTF": of_kernel(btf_sha256="c"),
    "that BTF from elsewhere": of_kernel(btf_external=True),
    "memory": of_spec(memory_mb=512),
    "CPU model": of_spec(cpu="max"),
    "kernel arguments": of_spec(kernel_args=("quiet",)),
    "machine": of_arch(machine="pc"),
    "the architecture's arguments": of_arch(tcg_args=()),
    "firmware": of_arch(firmware=None),
    "console": of_arch(console="ttyS1"),
    "the port is a UART": of_kernel(source={"modules_builtin": ["virtio_pci", "virtio_console"]}),
    "packages": lambda recipe: replace(recipe, packages=GuestPackages(paths=(), provenance=({"sha256": "q"},))),
    "the guest's code": lambda recipe: replace(recipe, sources={**recipe.sources, "guest/judge.py": b""}),
    "accelerator": lambda recipe: replace(recipe, accelerator="kvm"),
    "accelerator's options": lambda recipe: replace(recipe, accelerator="tcg,thread=single"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_a_guest_depends_on_changes_its_key(
    recipe: Recipe, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "firmware", lambda name: f"/usr/share/qemu/{name}")
    assert recipe.key() == replace(recipe).key()
    assert CHANGES[change](recipe).key() != recipe.key()


def test_the_rest_of_what_a_guest_depends_on_changes_its_key(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files by what they hold, another QEMU under the same name, the number of processors, how it is made ready."""
    keys = [recipe.key()]

    def differs() -> None:
        keys.append(recipe.key())
        assert len(set(keys)) == len(keys)

    (tmp_path / "module").write_text("another")
    differs()
    (tmp_path / "config").write_text("another")
    differs()
    other = install(tmp_path / "other" / "qemu-system-x86_64", version="7.2.22 (Debian 1:7.2+rebuilt)")
    monkeypatch.setenv("PATH", f"{other.parent}:/usr/bin:/bin")
    differs()
    monkeypatch.setattr(boot, "CPUS", 1)
    differs()
    monkeypatch.setattr(payload, "WARM_ROUNDS", 3)
    differs()
    monkeypatch.setattr(payload, "warm_object", lambda: b"another")
    differs()
    monkeypatch.setattr(boot, "_KERNEL_ARGS", ())
    differs()
    monkeypatch.setattr(boot, "_code_fingerprint", lambda: "another")
    differs()
    monkeypatch.setattr("platform.machine", lambda: "another")
    differs()


def test_under_kvm_the_hosts_cpu_counts(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    emulated, virtual = recipe.key(), replace(recipe, accelerator="kvm").key()
    monkeypatch.setattr(boot, "_host_cpu", lambda: "another")
    assert recipe.key() == emulated
    assert replace(recipe, accelerator="kvm").key() != virtual


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ("cortex-a76 max,pauth=off max", "cortex-a76"),  # 7.1 and newer
        ("max,pauth=off max", "max,pauth=off"),  # 6.0
        ("max", "max"),  # 5.2
        ("''", "cortex-a76"),  # QEMU says what is wrong
    ],
)
def test_an_older_qemu_gets_a_cpu_it_knows(models: str, expected: str, tmp_path: Path) -> None:
    path = install(tmp_path / "qemu-system-aarch64", models=models)
    arch = ARCHITECTURES["arm64"]
    assert qemu.first_cpu(str(path), arch.machine, (arch.cpu, *arch.cpus_instead)) == expected


def test_where_there_is_no_choice_nothing_is_tried(tmp_path: Path) -> None:
    assert boot._cpu_model("/nowhere/qemu", ARCHITECTURES["x86_64"], Store(tmp_path)) == ARCHITECTURES["x86_64"].cpu


def test_a_qemu_is_asked_once_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To start one costs a fifth of what a restored guest does. Another version is another QEMU."""
    asked: list[str] = []

    def first(binary: str, _machine: str, models: tuple[str, ...]) -> str:
        asked.append(binary)
        return models[1]

    monkeypatch.setattr(qemu, "first_cpu", first)
    for version, times in (("7.2.1", 1), ("7.2.1", 1), ("8.0.0", 2)):
        monkeypatch.setattr(qemu, "version", lambda _binary, version=version: version)
        assert boot._cpu_model("q", ARCHITECTURES["arm64"], Store(tmp_path)) == ARCHITECTURES["arm64"].cpus_instead[0]
        assert len(asked) == times


def test_a_qemu_older_than_any_that_could_work_is_named() -> None:
    assert qemu.older_than_needed("4.2.1 (Debian 1:4.2-3ubuntu6)") == (
        "QEMU 5.0 or newer is needed, this is 4.2.1 (Debian 1:4.2-3ubuntu6)"
    )
    assert [qemu.older_than_needed(version) for version in ("5.0.0", "5.2.0 (Debian)", "10.0.13")] == [None] * 3

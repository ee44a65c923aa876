"""QEMU's command line as a fold over devices."""

from __future__ import annotations

import pytest

from harness.errors import InfrastructureError
from harness.model.arch import ARCHITECTURES
from harness.vm import devices, qemu

X86 = ARCHITECTURES["x86_64"]


def guest(*more: devices.Device) -> list[devices.Device]:
    return [
        devices.Machine(arch=X86, cpu="qemu64", cpus=2, accelerator="tcg"),
        devices.Console(device="ttyS0", descriptor=3),
        devices.ResultPort(descriptor=4),
        devices.Monitor(descriptor=5),
        *more,
    ]


def test_nothing_is_there_that_was_not_asked_for() -> None:
    words = qemu.command("qemu", guest())
    assert words[:6] == ["qemu", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    said = " ".join(words)
    for absent in ("-net", "-nic", "-drive", "-virtfs", "-fsdev", "-append"):
        assert absent not in said


def test_kernel_arguments_come_in_order_and_pid_1s_come_last() -> None:
    boot = devices.DirectBoot(kernel="/k", initramfs=7)
    init = devices.Init(program="/usr/bin/python3.11", arguments=("-I", "-S", "/start.py"))
    words = qemu.command("qemu", guest(boot, devices.KernelArgs(words=("a=1",)), init))
    assert words[words.index("-append") + 1] == (
        "panic=-1 oops=panic console=ttyS0 quiet corematrix.port=org.corematrix.0 a=1 "
        "rdinit=/usr/bin/python3.11 -- -I -S /start.py"
    )
    assert words[words.index("-initrd") + 1] == "/proc/self/fd/7"


def test_every_descriptor_named_is_handed_over() -> None:
    """Whatever fd= or /proc/self/fd/ a command line names must be inherited, or QEMU opens somebody else's."""
    import re

    boot = devices.DirectBoot(kernel="/proc/self/fd/9", kernel_descriptor=9, initramfs=7)
    all_devices = guest(boot, devices.Memory(megabytes=256, descriptor=8, shared=True), devices.Incoming(stream=10))
    words = " ".join(qemu.command("qemu", all_devices))
    named = {int(number) for number in re.findall(r"(?:fd=|/fd/)(\d+)", words)}
    inherited = {descriptor for device in all_devices for descriptor in device.descriptors()}
    assert named == {3, 4, 5, 7, 8, 9}
    assert inherited == named | {10}


@pytest.mark.parametrize(("shared", "share"), [(True, "share=on"), (False, "share=off")])
def test_memory_in_a_file_is_shared_only_while_a_guest_is_saved(shared: bool, share: str) -> None:
    words = devices.Memory(megabytes=256, descriptor=8, shared=shared).qemu_args()
    assert words[-1] == f"memory-backend-file,id=ram,size=256M,mem-path=/proc/self/fd/8,{share}"


def test_a_kernel_without_virtio_console_gets_a_second_uart() -> None:
    uart = devices.ResultUart(device="ttyS1", descriptor=4)
    assert uart.kernel_args() == ("corematrix.tty=ttyS1",)
    assert uart.modules() == ()
    assert devices.ResultPort(descriptor=4).modules() == ("virtio_pci", "virtio_console")


def test_a_missing_emulator_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InfrastructureError, match="apt-get install qemu-system-misc"):
        qemu.binary(ARCHITECTURES["riscv64"])

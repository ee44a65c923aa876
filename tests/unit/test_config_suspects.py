"""Config suspects, with Debian's own configurations. The second source is the kernel's: which switch a member stands
under was read from linux-source-6.1 (tests/data/kconfig/members.tsv), that it is missing from the other kernel's BTF.
"""

from __future__ import annotations

import json
import lzma
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.model.plain_json import to_json
from harness.model.result import CellResult, KernelResult, RunResult, run_from_json
from harness.model.suspicion import ConfigSuspicion
from harness.report import json_format, render
from harness.report.config_suspects import Place, Sources, suspects
from harness.report.field_path import Member, split, walk
from harness.report.option_names import OptionNames, likeness
from harness.report.suspicion import lines as lines_of
from tests.support.facts import begun, evidence, facts, judged, poisoned, prog, relo, run_of
from tests.unit.test_kernel_diff import btf

DATA = Path(__file__).parents[1] / "data" / "kconfig"
GENERIC, CLOUD, RT = "6.1.0-56-amd64", "6.1.0-56-cloud-amd64", "6.1.0-56-rt-amd64"


def config(release: str) -> str:
    return lzma.decompress((DATA / f"config-{release}.xz").read_bytes()).decode()


def members() -> Iterator[list[str]]:
    return (line.split("\t") for line in (DATA / "members.tsv").read_text().splitlines() if not line.startswith("#"))


def on(release: str) -> set[str]:
    return {line.partition("=")[0] for line in config(release).splitlines() if line.endswith(("=y", "=m"))}


def cell(
    kernel: str, *, has: bool, release: str = "6.1.192", field: str = "task_struct.gone", **more: Any
) -> CellResult:
    """A program that reads a field, guarded; the configuration's hash is the kernel's id."""
    there = f"<byte_off> [9] struct {field} (0:1 @ offset 8)"
    found = relo(0, field, target_spec=there) if has else poisoned(0, field)
    answer = facts([prog("trace", relos=[(0, 3)], evidence=evidence([[0, 2]]))], [found], **more)
    done = judged(answer, cell=begun(kernel))
    about = replace(done.kernel, release=release, config_sha256=kernel, btf_sha256=kernel)
    return replace(done, kernel=about)


def lines(**switches: str) -> str:
    return "".join(f"CONFIG_{k}={v}\n" if v != "n" else f"# CONFIG_{k} is not set\n" for k, v in switches.items())


def sources(configs: dict[str, str], **more: Any) -> Sources:
    return Sources(config_of=configs.get, **more)


def only(run: RunResult, given: Sources) -> ConfigSuspicion:
    (found,) = suspects(run, given)
    return found


def options(suspicion: ConfigSuspicion) -> list[str]:
    return [suspect.option for suspect in suspicion.suspects]


def test_a_name_among_thousands_of_switches() -> None:
    """3,635 switches differ between cloud and generic; the source says IEEE802154 for this member."""
    run = run_of(cell("cloud", has=False, field="net_device.ieee802154_ptr"),
                 cell("generic", has=True, field="net_device.ieee802154_ptr"))  # fmt: skip
    found = only(run, sources({"cloud": config(CLOUD), "generic": config(GENERIC)}))
    assert found.separating == len(on(GENERIC) ^ on(CLOUD))
    assert (found.lacking, found.having, found.alike) == (("cloud",), ("generic",), True)
    first = found.suspects[0]
    assert (first.option, first.here, first.there, first.because) == ("CONFIG_IEEE802154", "n", "m", "by its name")


def test_the_source_is_believed_before_the_name() -> None:
    run = run_of(cell("cloud", has=False, field="net_device.ieee80211_ptr"),
                 cell("generic", has=True, field="net_device.ieee80211_ptr"))  # fmt: skip
    place = Place(option="CONFIG_CFG80211", text="include/linux/netdevice.h:2152")
    asked = []

    def places_of(kernel: KernelResult, wanted: Any) -> dict[Member, list[Place]]:
        asked.append(kernel.id)
        return {member: [place] for member in wanted if member == Member("net_device", "ieee80211_ptr")}

    given = sources({"cloud": config(CLOUD), "generic": config(GENERIC)},
                    readable=lambda kernel: kernel.id == "generic", places_of=places_of)  # fmt: skip
    found = only(run, given)
    assert options(found) == ["CONFIG_CFG80211"] and place.text in found.suspects[0].because
    assert asked == ["generic"]


def test_names_are_right_or_silent_on_debians_kernels() -> None:
    """Of 112 members with a switch of their own in the source: named first, or nothing is said. Three times a switch
    next of kin is named: WIRELESS for WIRELESS_EXT (twice), FCOE for LIBFCOE.
    """
    ranked: dict[tuple[str, str], OptionNames] = {}
    outcomes: Counter[str] = Counter()
    for has, lacks, type_, member, truth in members():
        names = ranked.setdefault((has, lacks), OptionNames(on(has) ^ on(lacks)))
        found = names.close([member], [type_])
        outcome = "silent" if not found else "first" if found[0] == truth else "among" if truth in found else "wrong"
        outcomes[outcome] += 1
    assert outcomes["first"] >= 48 and outcomes["wrong"] <= 3, outcomes
    assert outcomes.total() == 112


def test_only_switches_that_separate_exactly_are_suspects() -> None:
    configs = {
        "a": lines(GONE="y", OTHER="y", NET="y"), "b": lines(GONE="m", OTHER="n", NET="y"),
        "c": lines(GONE="n", OTHER="n", NET="y"), "d": lines(OTHER="n", NET="y", NEW="y"),
    }  # fmt: skip
    run = run_of(*(cell(kernel, has=kernel in "ab") for kernel in configs))
    found = only(run, sources(configs))
    assert options(found) == ["CONFIG_GONE"] and found.separating == 1
    assert (found.suspects[0].here, found.suspects[0].there) == ("n", "m or y")
    assert found.suspects[0].because == "the only switch that differs so"


def test_a_switch_that_takes_something_away() -> None:
    configs = {"old": lines(PREEMPT_RT="y"), "new": lines(PREEMPT_RT="n")}
    found = only(run_of(cell("old", has=False), cell("new", has=True)), sources(configs))
    assert (found.suspects[0].here, found.suspects[0].there) == ("y", "n")


def test_kernels_of_one_version_are_compared_when_there_are_such() -> None:
    """5.10 lacks the field whatever its switches are; 6.1 has it or not by its configuration."""
    configs = {"old": lines(GONE="y", A="n", B="n", C="n"), "with": lines(GONE="y", A="y", B="y", C="y"),
               "without": lines(GONE="n", A="y", B="y", C="y")}  # fmt: skip
    run = run_of(cell("old", has=False, release="5.10.262"), cell("with", has=True), cell("without", has=False))
    found = only(run, sources(configs))
    assert found.alike and options(found) == ["CONFIG_GONE"]
    assert found.lacking == ("old", "without")


def test_across_versions_a_name_proves_nothing() -> None:
    configs = {"old": lines(GONE="n"), "new": lines(GONE="y")}
    run = run_of(cell("old", has=False, release="5.10.262"), cell("new", has=True))
    assert suspects(run, sources(configs)) == ()


def test_across_versions_what_the_object_asks_for_is_named() -> None:
    configs = {"old": lines(GONE="n"), "new": lines(GONE="y")}
    extern = {"name": "CONFIG_GONE", "kind": "kconfig", "type": "bool", "value": 0, "weak": True, "outcome": "resolved",
              "reason": None}  # fmt: skip
    run = run_of(cell("old", has=False, release="5.10.262", externs=[extern]), cell("new", has=True, externs=[extern]))
    found = only(run, sources(configs))
    assert not found.alike and found.suspects[0].because == "the object asks for it"


def test_without_configurations_nothing_is_said() -> None:
    run = run_of(cell("old", has=False), cell("new", has=True))
    assert suspects(run, sources({})) == ()
    assert suspects(run, sources({"old": lines(GONE="n")})) == ()


def test_a_program_refused_for_its_type() -> None:
    def loads(kernel: str, *, loaded: bool) -> CellResult:
        refusal = {} if loaded else {"stage": "pre_verifier", "errno": 22}
        answer = facts([prog("trace", loaded=loaded, prog_type="lsm", section="lsm/file_open", **refusal)])
        done = judged(answer, cell=begun(kernel))
        return replace(done, kernel=replace(done.kernel, release="6.1.1", config_sha256=kernel))

    noise = {f"X{number}": "y" for number in range(20)}
    configs = {"with": lines(BPF_LSM="y", **noise), "without": lines(BPF_LSM="n")}
    run = run_of(loads("with", loaded=True), loads("without", loaded=False))
    found = only(run, sources(configs))
    assert (found.field, found.progs, options(found)) == ("", ("x/trace",), ["CONFIG_BPF_LSM"])
    assert "bpf_types.h" in found.suspects[0].because


def test_trampolines_come_with_the_jit() -> None:
    def loads(kernel: str, *, loaded: bool) -> CellResult:
        refusal = {} if loaded else {"stage": "pre_verifier", "errno": 12}
        done = judged(facts([prog("trace", loaded=loaded, prog_type="tracing", **refusal)]), cell=begun(kernel))
        return replace(done, kernel=replace(done.kernel, release="6.1.1", config_sha256=kernel))

    noise = {f"X{number}": "y" for number in range(20)}
    configs = {"with": lines(BPF_EVENTS="y", BPF_JIT="y", **noise), "without": lines(BPF_EVENTS="y")}
    found = only(run_of(loads("with", loaded=True), loads("without", loaded=False)), sources(configs))
    assert options(found) == ["CONFIG_BPF_JIT"]


def test_what_refuses_a_program_is_its_own() -> None:
    """A strong extern that cannot be had names the switch; the other program of the run has nothing to do with it."""

    def extern(name: str, outcome: str, *, weak: bool = False) -> dict[str, Any]:
        return {"name": name, "kind": "kconfig", "type": "bool", "value": 1, "weak": weak, "outcome": outcome,
                "reason": None}  # fmt: skip

    def cells(kernel: str, *, has: bool) -> Iterator[CellResult]:
        asked = extern("CONFIG_IPV6", "resolved" if has else "missing")
        externs = [asked, extern("CONFIG_OTHER", "resolved", weak=True)]
        for object_, own, stage in (("asks", externs, "externs"), ("attaches", [], "pre_verifier")):
            refusal = {} if has else {"stage": stage, "errno": 3, "error": "gone"}
            answer = facts([prog("trace", loaded=has, prog_type="tracing", **refusal)], externs=own)
            done = judged(answer, cell=begun(kernel, object_))
            yield replace(done, kernel=replace(done.kernel, release="6.1.1", config_sha256=kernel))

    noise = {f"X{number}": "y" for number in range(20)}
    configs = {"with": lines(IPV6="y", OTHER="y", **noise), "without": lines(IPV6="n")}
    run = run_of(*cells("with", has=True), *cells("without", has=False))
    found = {item.progs: options(item) for item in suspects(run, sources(configs))}
    assert found == {("asks/trace",): ["CONFIG_IPV6"], ("attaches/trace",): []}


def test_fields_of_one_cause_are_one_paragraph() -> None:
    suspicion = suspected().config_suspects[0]
    both = [suspicion, replace(suspicion, field="task_struct.gone.deeper")]
    (paragraph,) = lines_of(both, ["with", "without"])
    assert paragraph.startswith("task_struct.gone, task_struct.gone.deeper are missing on without: ")


def test_of_a_path_the_member_that_is_missing_counts() -> None:
    """Debian's 6.1 has the empty struct where accounting is off: what is missing is in task_io_accounting."""
    whole = "struct task_io_accounting { u64 read_bytes; }; struct task { int pid; struct task_io_accounting ioac; };"
    empty = "struct task_io_accounting { }; struct task { int pid; struct task_io_accounting ioac; };"
    btfs = {"with": btf(whole, "struct task"), "without": btf(empty, "struct task")}
    noise = {f"X{number}": "y" for number in range(20)}
    configs = {"with": lines(TASK_IO_ACCOUNTING="y", **noise), "without": lines(TASK_IO_ACCOUNTING="n")}
    field = "task___mine.ioac.read_bytes"
    run = run_of(cell("with", has=True, field=field), cell("without", has=False, field=field))
    found = only(run, sources(configs, btf_of=btfs.get))
    assert options(found) == ["CONFIG_TASK_IO_ACCOUNTING"] and found.suspects[0].because == "by its name"


def test_fields_step_by_step() -> None:
    types = """struct deep { int x; };
        struct outer { union { struct deep a; int b; }; struct deep list[4]; struct { int inner; } named; };
        enum color { RED, GREEN = 7 };"""
    found = btf(types, "struct outer", "enum color")
    assert split("outer___mine.list[2].x") == ("outer", ["list", "x"])
    assert split("color::GREEN") == ("color", ["GREEN"])
    assert walk(found, "outer", ["list", "x"]) == [("outer", ""), ("outer", "list"), ("deep", "x")]
    assert walk(found, "outer", ["a", "x"]) == [("outer", ""), ("outer", "a"), ("deep", "x")]
    assert walk(found, "outer", ["named", "inner"]) == [("outer", ""), ("outer", "named"), ("outer", "inner")]
    assert walk(found, "color", ["GREEN"]) == [("color", ""), ("color", "GREEN")]
    assert walk(found, "color", ["BLUE"]) is None and walk(found, "outer", ["gone"]) is None
    assert walk(found, "nothing", []) is None


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("numa", "numa", 1.0), ("stats", "stat", 1.0), ("stat", "statistics", 0.7), ("cgrp", "cgroup", 0.6),
     ("net", "netrom", 0.0), ("io", "ioac", 0.0), ("pids", "cgroup", 0.0)],
)  # fmt: skip
def test_likeness(one: str, other: str, expected: float) -> None:
    assert likeness(one, other) == likeness(other, one) == expected


def suspected() -> RunResult:
    configs = {"with": lines(GONE="y"), "without": lines(GONE="n")}
    run = run_of(cell("with", has=True), cell("without", has=False))
    return replace(run, config_suspects=suspects(run, sources(configs)))


@pytest.mark.parametrize("format", ["terminal", "text", "markdown"])
def test_every_report_shows_the_suspect(format: str) -> None:
    text = " ".join(render(format, suspected()).replace("\\", "").split())
    assert "CONFIG_GONE=n here, =y where it is found" in text and "suspect" in text


def test_the_page_shows_the_suspect_where_the_field_is_missing() -> None:
    page = render("html", suspected())
    assert page.count("CONFIG_GONE=n here, =y where it is found") == 1


def test_json_holds_to_the_schema_and_comes_back() -> None:
    run = suspected()
    data = json.loads(json_format.render(run))
    schema = json.loads(files("harness.report").joinpath("schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(data)
    assert data["config_suspects"][0]["suspects"][0]["option"] == "CONFIG_GONE"
    assert run_from_json(to_json(run)).config_suspects == run.config_suspects



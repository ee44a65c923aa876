"""The HTML page: self-contained, harmless whatever a guest wrote, and working in a real Chromium."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess

import pytest

from harness.errors import GuestLostError
from harness.judge import lost
from harness.report import render
from tests.support.facts import begun, evidence, facts, guard, judged, poisoned, prog, relo, run_of

KERNELS = ["debian-5.10-cloud-amd64", "debian-6.1-cloud-amd64", "debian-7.2-rt-amd64"]
CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
EVIL = "</script><script>document.title='owned'</script><!--<img src=x onerror=alert(1)>\u2028\x1b[2J"


def cells(text="BPF_CORE_READ(t, __state)"):
    relos = [
        guard(0, "task_struct.__state", 0),
        poisoned(1, "task_struct.__state", text=text, reason="no member __state"),
    ]
    good = prog("handle_exec", relos=[(0, 1), (1, 3)], evidence=evidence([[0, 3], [4, 9]]))
    bad = prog(
        "trace", loaded=False, relos=[(1, 3)], evidence=evidence(None, [[0, 4]]), log="3: call\nwhat the verifier said"
    )
    return [
        judged(facts([good], relos), cell=begun(KERNELS[0], "task_state")),
        judged(facts([good], [guard(0, "task_struct.__state", 1), relo(1)]), cell=begun(KERNELS[1], "task_state")),
        judged(facts([bad], relos), cell=begun(KERNELS[1], "published")),
        lost(begun(KERNELS[2], "published"), GuestLostError("the kernel panicked", console_tail="Kernel panic")),
    ]


def page_data(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_the_page_needs_no_network():
    html = render("html", run_of(*cells()))
    assert not re.search(r"(src|href)=|@import|url\(|fetch\(|XMLHttpRequest", html)
    assert "default-src 'none'" in html


def test_equal_findings_are_stored_once():
    many = [
        judged(facts([prog(relos=[(0, 1)], evidence=evidence([[0, 9]]))], [relo(0)]), cell=begun(f"debian-{n}"))
        for n in range(30)
    ]
    data = page_data(render("html", run_of(*many)))
    assert len(data["kernels"]) == 30 and len(data["relos"]) == 1 and len(data["results"]) == 1


def test_values_of_64_bits_stay_exact():
    cell = judged(facts([prog(relos=[(0, 1)], evidence=evidence([[0, 9]]))], [relo(0, new_value=(1 << 64) - 1)]))
    assert str((1 << 64) - 1) in page_data(render("html", run_of(cell)))["relos"][0]


def test_no_guest_can_leave_the_data():
    html = render("html", run_of(*cells(EVIL)))
    assert html.count("</script>") == 2 and "\x1b" not in html
    assert EVIL.split("\u2028", maxsplit=1)[0] in page_data(html)["rows"][0]["relos"][1][3][2]


def test_a_baseline_marks_what_changed():
    run = run_of(*cells())
    better = judged(facts([prog("trace")]), cell=begun(KERNELS[1], "published"))
    base = dataclasses.replace(run, cells=(*run.cells[:2], better, *run.cells[3:]))
    data = page_data(render("html", run, baseline=base))
    field = data["rows"][1]["fields"][1]
    assert data["compared"] and any(change.startswith("regression: loaded before") for change in field[5])
    assert not data["rows"][0]["fields"][0][5]


def palettes():
    """The colours of the page: the light ones, and the dark ones where they differ."""
    css = render("html", run_of(*cells())).partition("<style>")[2].partition("</style>")[0]
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in blocks)
    return {"light": light, "dark": {**light, **dark}}


def contrast(one, other):
    """WCAG 2.1, relative luminance and contrast ratio."""

    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_every_text_stands_out_from_what_is_behind_it():
    assert round(contrast("#000000", "#ffffff"), 1) == 21.0 and round(contrast("#777777", "#ffffff"), 2) == 4.48
    pairs = [(name, f"{name}-fg") for name in ("good", "guard", "bad", "trouble", "quiet", "code")]
    pairs += [(back, text) for back in ("page", "card", "raised") for text in ("fg", "dim")]
    pairs += [("code", "dim"), ("card", "quiet-fg"), ("card", "focus"), ("page", "focus")]
    for theme, colours in palettes().items():
        weak = {pair: contrast(*(colours[name] for name in pair)) for pair in pairs}
        assert not {pair: ratio for pair, ratio in weak.items() if ratio < 4.5}, theme


# What a reader does, done by a script at the end of the page; the outcome is left in an attribute.
DRIVE = """<script>
const out = {};
const rows = () => [...document.querySelectorAll("#map tbody tr")].map((tr) => tr.querySelector("th").textContent);
const type = (id, value) => { $(id).value = value; $("filters").dispatchEvent(new Event("input")); };
try {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const texts = (nodes) => nodes.map((node) => node.textContent);
  const heads = () => all("#map thead tr:last-child th");
  out.rows = rows();
  out.heads = heads().map((th) => texts([...th.children]).join("-"));
  out.archs = texts(all("#map thead tr:first-child th"));
  out.marks = texts(all("#map td button"));
  out.attached = all("#map tbody tr").map((tr) => texts(all("td.attach", tr)));
  out.spans = all("#map thead tr:first-child th").map((th) => th.colSpan);
  out.legend = texts(all("#legend > span"));
  document.querySelector("#map td button.bad").click();
  out.open = $("ledger").open; out.sheet = $("sheet").textContent; out.what = $("what").textContent;
  out.code = all(".line").map((card) => all(".relo", card).length);
  out.folded = all("#sheet details").map((d) => d.open);
  const ends = () => [$("where").textContent, $("before").disabled, $("after").disabled];
  out.steps = [ends()];
  for (const id of ["after", "before"]) { $(id).click(); out.steps.push(ends()); }
  $("close").click();
  out.closed = !$("ledger").open;
  type("object", "task_"); out.filtered = rows(); type("object", "");
  type("kernel", "7.2"); out.columns = heads().length; type("kernel", "");
  type("show", "bad"); out.bad = rows(); type("show", "all");
  type("object", "nothing like it"); out.none = !$("none").hidden; type("object", "");
  const first = document.querySelector("#map td button[tabindex='0']");
  first.focus();
  first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  out.moved = document.activeElement !== first && document.activeElement.tagName;
  out.stops = all("#map td button[tabindex='0']").length;
  out.wide = document.documentElement.scrollWidth <= window.innerWidth;
  out.topics = texts(all("#remarks summary"));
  const topic = all("#remarks details").find((d) => d.textContent.includes("nothing guards it"));
  if (topic) {
    out.unopened = all("li", topic).length;
    topic.open = true; topic.dispatchEvent(new Event("toggle"));
    out.remarks = texts(all("li", topic));
    topic.querySelector("li button").click(); out.shown = $("where").textContent; $("close").click();
  }
  out.injected = document.querySelectorAll("img").length + (document.title === "owned" ? 1 : 0);
} catch (error) { out.error = String(error); }
document.body.setAttribute("data-out", JSON.stringify(out));
</script></body>"""


def drive(tmp_path, html, size="1200,800"):
    """What DRIVE found out in a headless Chromium."""
    page = tmp_path / "page.html"
    page.write_text(html.replace("</body>", DRIVE), encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
               f"--window-size={size}", "--dump-dom", page.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'data-out="(.*?)"', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(found[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")


@needs_chromium
def test_chromium_opens_clicks_filters_and_moves(tmp_path):
    out = drive(tmp_path, render("html", run_of(*cells(EVIL))))
    assert "error" not in out, out
    assert out["rows"] == ["task_state handle_exec", "published trace"]
    assert out["heads"] == ["", "5.10-cloud", "6.1-cloud", "7.2-rt"] and out["archs"] == ["", "x86_64"]
    assert out["marks"] == ["guard", "ok", "REJECT", "lost"]
    assert out["open"] and out["closed"]
    assert (
        "task_struct.__state" in out["sheet"]
        and "poisoned, live" in out["sheet"]
        and "what the verifier said" in out["sheet"]
    )
    assert "corematrix run published.bpf.o" in out["sheet"] and "None" not in out["sheet"]
    assert out["folded"] == [False] and out["what"] == "published / trace" and out["code"] == [1]
    first, other = (f"{kernel}/published@python" for kernel in KERNELS[1:])
    assert out["steps"] == [[first, True, False], [other, False, True], [first, True, False]]
    assert any(text.startswith("Reached poison: nothing guards it on these kernels") for text in out["topics"])
    assert out["unopened"] == 0 and len(out["remarks"]) == 1 and out["shown"] == first
    assert out["remarks"][0].startswith("published/trace") and "task_struct.__state byte_off" in out["remarks"][0]
    assert out["filtered"] == ["task_state handle_exec"] and out["bad"] == ["published trace"]
    assert out["columns"] == 2 and out["none"]
    assert out["moved"] == "BUTTON" and out["stops"] == 1
    assert out["injected"] == 0


@needs_chromium
def test_attaching_is_a_column_beside_each_kernels_verdict(tmp_path):
    said = {"status": "refused", "how": "kprobe event", "errno": 2, "error": f"symbol gone: {EVIL}", "stand_in": None}
    there = {**said, "status": "attached", "errno": None, "error": None}
    told = [
        judged(facts([prog("trace", attach=answer), prog("bad", loaded=False)]), cell=begun(kernel, "probe"))
        for kernel, answer in zip(KERNELS[:2], (said, there), strict=True)
    ]
    out = drive(tmp_path, render("html", run_of(*told)))
    assert "error" not in out, out
    assert out["attached"] == [["NO", "yes"], ["", ""]]  # what was not loaded was not attached either
    assert out["heads"][2::2] == ["attach"] * 2
    assert out["spans"] == [1, 4] and out["marks"] == ["ok", "ok", "REJECT", "REJECT"]
    assert "NOattach: cannot be attached" in out["legend"] and out["injected"] == 0
    plain = drive(tmp_path, render("html", run_of(*cells())))
    assert plain["attached"] == [[], []] and "attach" not in plain["heads"]


@needs_chromium
def test_a_phone_scrolls_the_table_and_not_the_page(tmp_path):
    many = [
        judged(facts([prog("a_program_with_quite_a_long_name")]), cell=begun(f"debian-{n}.1-cloud-amd64"))
        for n in range(20)
    ]
    bad = judged(facts([prog("a_program_with_quite_a_long_name", loaded=False)]), cell=begun("debian-99-cloud-amd64"))
    out = drive(tmp_path, render("html", run_of(*many, bad)), size="500,800")
    assert "error" not in out, out
    assert out["wide"]

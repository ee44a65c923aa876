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


# What a reader does, done by a script at the end of the page; the outcome is left in an attribute.
DRIVE = """<script>
const out = {};
const rows = () => [...document.querySelectorAll("#map tbody tr")].map((tr) => tr.querySelector("th").textContent);
const type = (id, value) => { $(id).value = value; $("filters").dispatchEvent(new Event("input")); };
try {
  out.rows = rows();
  out.heads = document.querySelectorAll("#map thead th").length;
  out.marks = [...document.querySelectorAll("#map td button")].map((b) => b.textContent);
  document.querySelector("#map td button.bad").click();
  out.open = $("ledger").open; out.sheet = $("sheet").textContent;
  out.folded = [...document.querySelectorAll("#sheet details")].map((d) => d.open);
  $("close").click();
  out.closed = !$("ledger").open;
  type("object", "task_"); out.filtered = rows(); type("object", "");
  type("kernel", "7.2"); out.columns = document.querySelectorAll("#map thead th").length; type("kernel", "");
  type("show", "bad"); out.bad = rows(); type("show", "all");
  type("object", "nothing like it"); out.none = !$("none").hidden; type("object", "");
  const first = document.querySelector("#map td button[tabindex='0']");
  first.focus();
  first.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  out.moved = document.activeElement !== first && document.activeElement.tagName;
  out.stops = document.querySelectorAll("#map td button[tabindex='0']").length;
  out.wide = document.documentElement.scrollWidth <= window.innerWidth;
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
    assert out["rows"] == ["task_state handle_exec", "published trace"] and out["heads"] == 4
    assert out["marks"] == ["guard", "ok", "REJECT", "lost"]
    assert out["open"] and out["closed"]
    assert (
        "task_struct.__state" in out["sheet"]
        and "poisoned, live" in out["sheet"]
        and "what the verifier said" in out["sheet"]
    )
    assert "corematrix run published.bpf.o" in out["sheet"]
    assert out["folded"] == [False]
    assert out["filtered"] == ["task_state handle_exec"] and out["bad"] == ["published trace"]
    assert out["columns"] == 2 and out["none"]
    assert out["moved"] == "BUTTON" and out["stops"] == 1
    assert out["injected"] == 0


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

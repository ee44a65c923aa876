"""One batch in a process of its own: objects named on stdin, facts of both loaders as JSON lines on stdout."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from harness.guest import libbpf_loader
from harness.guest.judge import Machine, judge
from tests.corpus.compared import plain_name


def main() -> None:
    """Judge each object with libbpf first, then with our loader by the rules of that libbpf's version."""
    request = json.loads(sys.stdin.read())
    machine = Machine.survey()
    rules = libbpf_loader.version(request["libbpf"] or libbpf_loader.DEFAULT_PATH)
    common = {"libbpf": request["libbpf"], "rules": rules}
    for name, path in request["objects"]:
        answer: dict[str, Any] = {"name": name}
        try:
            for loader in ("libbpf", "python"):
                ask = {**common, "name": plain_name(name), "loader": loader, "evidence": loader == "python"}
                answer[loader] = judge(machine, Path(path).read_bytes(), ask, lambda _message: None)
        except Exception:
            answer = {"name": name, "trouble": traceback.format_exc()}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""A small real program for job tests: does what its JSON argument says, in order."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    todo = json.loads(sys.argv[1])
    if todo.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif todo.get("listens"):
        signal.signal(signal.SIGTERM, _save_and_leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see tiny_worker.py
    if todo.get("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(240)"])
        Path("outputs/child.pid").write_text(str(child.pid))
    Path("outputs/started").write_text(str(os.getpid()))
    with Path("progress.ndjson").open("a") as notes:
        notes.writelines(
            json.dumps({"event": "step", "step": step, "loss": 1.0 / step}) + "\n"
            for step in range(1, 4)
        )
    time.sleep(todo.get("sleep_s", 0.0))
    while "until" in todo and not Path(todo["until"]).exists():
        time.sleep(0.02)
    with Path("outputs/count").open("a") as file:
        file.write("once\n")
    if todo.get("link"):
        Path("outputs/link").symlink_to("/etc/passwd")
    if "say" in todo:
        sys.stderr.write(todo["say"] * todo.get("say_times", 1) + "\n")
    if "note" in todo:
        with Path("progress.ndjson").open("a") as notes:
            notes.write(json.dumps(todo["note"]) + "\n")
    if "report" in todo:
        Path("outputs/report").mkdir(exist_ok=True)
        Path("outputs/report/report.json").write_text(json.dumps(todo["report"]))
    if "checkpoint" in todo:
        Path("outputs/checkpoint").mkdir(exist_ok=True)
        Path("outputs/checkpoint/model.txt").write_text(todo["checkpoint"])
    return int(todo.get("exit_code", 0))


def _save_and_leave(number: int, frame: object) -> None:
    Path("outputs/saved").write_text("saved on SIGTERM")
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())

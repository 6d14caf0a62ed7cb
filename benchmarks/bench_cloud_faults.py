"""Do rented pods always end, and do they ever cost more than allowed? 10,000 seeded schedules.

The provider is simulated, the code that rents, ends and counts is the real one. In each schedule
the daemon dies for ever at a random moment; calls are lost, carried out twice, refused, answered
late; pods stay invisible, never start, have no ports or no GPUs, or live on after they were told to
end. A line of the table is a set of hands that were left.
"""

import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.pod_schedules import Outcome, run_many

SCHEDULES = int(os.environ.get("SCF_POD_SEEDS", "10000"))


def run() -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for has_reaper in (True, False):
        began = time.process_time()
        outcomes = run_many(range(SCHEDULES), has_reaper=has_reaper)
        groups: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
        for outcome in outcomes:
            groups[outcome.hands].append(outcome)
        for hands, rows in sorted(groups.items()):
            figures[f"left: {', '.join(hands)}"] = _row(rows)
        name = "reaper alive" if has_reaper else "reaper dead, too"
        figures[f"ALL, {name}"] = _row(outcomes)
        figures[f"CPU seconds, {name}"] = round(time.process_time() - began, 1)
        if has_reaper:
            calls = max(outcome.list_calls_max for outcome in outcomes)
            figures["list calls of the daemon in the worst minute"] = calls
        bad = [o.seed for o in outcomes if o.alive or o.spent_usd > o.cap_usd]
        figures[f"failing seeds, {name}"] = bad[:10]
    return figures


def _row(rows: list[Outcome]) -> str:
    over = [o for o in rows if o.spent_usd > o.cap_usd]
    doubled = sum(o.was_doubled for o in over)
    text = (
        f"{len(rows)} schedules, {sum(o.pods for o in rows)} pods, "
        f"{sum(o.faults for o in rows)} faults: {sum(o.alive for o in rows)} alive after "
        f"lease + 120 s, {len(over)} over the cap"
    )
    return text + (f" ({doubled} of them: an order carried out twice)" if over else "")


if __name__ == "__main__":
    print(run())

"""Do rented pods always end, and do they ever cost more than allowed? 10,000 seeded schedules.

The provider is simulated, the code that rents, ends and counts is the real one. In each schedule
the daemon dies for ever at a random moment; calls are lost, carried out twice, refused, answered
late; pods stay invisible, never start, have no ports or no GPUs, or live on after they were told to
end. In a quarter of them each job asks for a cluster of 2 to 4 pods, of which members come late,
never, or are deleted by hand. A line of the table is a set of hands that were left. A cluster has
no `terminateAfter`, and whether a member's key may end it is not documented: where neither that nor
the reaper is left, nobody is, and the line says what lives on.
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
        for what, is_cluster in (("pods", False), ("clusters", True)):
            groups: dict[tuple[str, ...], list[Outcome]] = defaultdict(list)
            for outcome in outcomes:
                if (outcome.nodes > 1) is is_cluster:
                    groups[outcome.hands].append(outcome)
            for hands, rows in sorted(groups.items()):
                figures[f"{what}, left: {', '.join(hands) or 'NOBODY'}"] = _row(rows)
        name = "reaper alive" if has_reaper else "reaper dead, too"
        held = [outcome for outcome in outcomes if outcome.hands]
        figures[f"ALL with a hand left, {name}"] = _row(held)
        figures[f"CPU seconds, {name}"] = round(time.process_time() - began, 1)
        if has_reaper:
            for what, rows in (
                ("pods", [o for o in outcomes if o.nodes == 1]),
                ("clusters", [o for o in outcomes if o.nodes > 1]),
            ):
                calls = max(outcome.list_calls_max for outcome in rows)
                figures[f"list calls of the daemon in the worst minute, {what}"] = calls
            figures["jobs ended because a member was gone"] = sum(o.losses for o in outcomes)
        bad = [o.seed for o in held if o.alive or o.spent_usd > o.cap_usd]
        figures[f"failing seeds, {name}"] = bad[:10]
    return figures


def _row(rows: list[Outcome]) -> str:
    over = [o for o in rows if o.spent_usd > o.cap_usd]
    doubled = sum(o.was_doubled for o in over)
    clusters = sum(o.clusters for o in rows)
    made = f"{clusters} clusters of " if clusters else ""
    text = (
        f"{len(rows)} schedules, {made}{sum(o.pods for o in rows)} pods, "
        f"{sum(o.faults for o in rows)} faults: {sum(o.alive for o in rows)} alive after "
        f"lease + 120 s, {len(over)} over the cap"
    )
    return text + (f" ({doubled} of them: an order carried out twice)" if over else "")


if __name__ == "__main__":
    print(run())

"""The double of RunPod, run by hand: pods are ssh servers of this machine, each with its own folder.

    PYTHONPATH=tests python -m fakes.runpod

It says what to put into `scf.toml` and into the environment, and then each call as it comes. Faults:

    --fault create=NO_CAPACITY --fault create=LOST_REPLY    the next calls of an operation, in turn
    --pod until_running=null                                how the next pod behaves (`PodScript`)
    --balance 0.1   --clock 300   --silent list,catalog     money, a clock that is off, no answer

Nothing of it is rented: no account, no GPU, no money.
"""

import argparse
import json
import signal
import sys
import threading
import time
from typing import Any

from fakes.runpod import world
from fakes.runpod.server import FakeRunpod
from fakes.runpod.world import Answer, Fault, PodScript
from support.cloud_settings import runpod_section
from support.rented_pods import RealPods

FAULTS = {name: value for name, value in vars(world).items() if isinstance(value, Fault)}


class TalkingRunpod(FakeRunpod):
    """Says each call; may be silent to some, and have a clock of its own."""

    def __init__(self, *, silent: set[str], **arguments: Any) -> None:
        self._silent = silent
        super().__init__(**arguments)

    def fault(self, operation: str) -> Fault | None:
        found = super().fault(operation)
        at = self.now().strftime("%H:%M:%S")
        alive = len(self.alive())
        sys.stderr.write(f"{at}  {operation:14} {alive} pods, balance {self.balance_usd:.4f}")
        sys.stderr.write(f"   {found}\n" if found else "\n")
        if operation in self._silent:
            self.lock.release()  # others are answered meanwhile
            time.sleep(3600)
            self.lock.acquire()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fakes.runpod",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--key", default="rpa_DOUBLE")
    parser.add_argument("--balance", type=float, default=100.0)
    parser.add_argument("--fault", action="append", default=[], metavar="OPERATION=NAME",
                        help=f"of {', '.join(FAULTS)}")  # fmt: skip
    parser.add_argument("--pod", action="append", default=[], metavar="NAME=JSON,...")
    parser.add_argument("--silent", default="", metavar="OPERATION,...")
    parser.add_argument("--clock", type=float, default=0.0, help="seconds that it is ahead of ours")
    parser.add_argument("--no-keys", action="store_true", help="no ssh key is registered")
    parser.add_argument("--no-leases", action="store_true", help="terminateAfter is not obeyed")
    given = parser.parse_args()
    pods = RealPods()
    provider = TalkingRunpod(
        key=given.key,
        balance_usd=given.balance,
        keeps_leases=not given.no_leases,
        start=pods.start,
        stop=pods.stop,
        silent=set(given.silent.split(",")),
    )
    provider.pass_time(given.clock)
    if given.no_keys:
        provider.ssh_keys.clear()
    for text in given.fault:
        operation, _, name = text.partition("=")
        fault: Fault | None = FAULTS[name] if name in FAULTS else Answer(int(name))
        provider.script(operation, fault)
    for text in given.pod:
        pairs = (pair.split("=") for pair in text.split(","))
        provider.pod_scripts.append(PodScript(**{name: json.loads(v) for name, v in pairs}))
    with provider:
        print(f"export RUNPOD_API_KEY={provider.key}")
        print(f"# scf.toml\n{runpod_section(provider)}", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            left = [pod.name for pod in provider.alive()]
            sys.stderr.write(f"\n{len(left)} pods were alive: {left}\n")


if __name__ == "__main__":
    main()

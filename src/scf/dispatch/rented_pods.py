"""The pods of jobs: ordered, found, given back, and counted (`follower.Machine`).

How each rule of `runpod.py` is kept. Every method can be called again after a crash: what may exist
is in the book before it is asked for, and what was told to end stays in the book until the provider
has twice not listed it.
"""

import base64
import contextlib
import dataclasses
import secrets
import shutil
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from scf.core.clock import Clock, parse_utc, utc_text
from scf.core.errors import BudgetExceeded, DoorError, DoorUnavailable, OperatorError
from scf.core.identity import sha256_hex
from scf.dispatch.follower import MachineGone
from scf.dispatch.job import JobSpec
from scf.dispatch.limited import run_limited
from scf.dispatch.pod_board import PodBoard
from scf.dispatch.pod_record import PodBook, PodRecord, PodState, Rented
from scf.dispatch.purse import Purse
from scf.dispatch.remote import sender_of
from scf.dispatch.rental import Candidate, RunpodSettings
from scf.dispatch.runpod_client import RunpodClient
from scf.dispatch.runpod_errors import CreateUnknown, NotPlaced
from scf.dispatch.runpod_model import GpuOffer, Pod, PodOrder, PodStatus
from scf.dispatch.sweeping import name_prefix, strays, sweep
from scf.dispatch.transfer import BoxUnreachable, SshBox, SshLink

# A pod may be ended a little late: this much more is promised for each.
OVERRUN_S = 300.0
# A repeated delivery makes two pods of one order. The second is found in the list and ended, unless
# nobody looks any more; so an order is promised twice until it is known that there is one pod.
PODS_OF_AN_ORDER = 2


class RentedPods:
    """Finds, reaches and gives back the pods of jobs (`follower.Machine`)."""

    # What runs on a pod ends with it: a job that is to end at once needs no word with the pod.
    is_rented = True

    def __init__(
        self,
        client: RunpodClient,
        home: Path,
        *,
        rental: RunpodSettings,
        purse: Purse,
        book: PodBook,
        clock: Clock,
    ) -> None:
        self._client = client
        self._rental = rental
        self._purse = purse
        self._book = book
        self._clock = clock
        self._folder = home / "runpod"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sender = sender_of(home)
        self._prefix = name_prefix(home)
        self._board = PodBoard(client, clock, rental.look_s)
        self._swept_look = 0
        self._told_at_look: dict[str, int] = {}

    def expect(self, spec: JobSpec) -> Mapping[str, Any]:
        prices = self._prices()
        hours = self._lease_s(spec) / 3600
        best = min(prices.values())
        if best > self._rental.max_usd_per_h:
            raise DoorUnavailable(
                f"the cheapest candidate costs {best:.2f} USD/h, "
                f"over max_usd_per_h {self._rental.max_usd_per_h:.2f}"
            )
        return {"image": self._rental.image, "expected_max_usd": round(best * hours, 2)}

    def place(self, job_id: str, facts: dict[str, Any], spec: JobSpec) -> dict[str, Any] | None:
        del facts
        record = self._book.read(job_id)
        if record is None or record.state is PodState.NONE:
            if record is None or not self._a_second_may_come(record):
                self._order(spec, record)
            return None
        if record.state is PodState.INTENDED:
            self._resolve(record)
            return None
        self._sweep_once_a_look()
        pod = self._present(record)
        record = self._known_to_be_one(job_id)
        if pod is None:
            if self._is_gone(record):
                self._give_up(record, "the pod is gone: somebody or something ended it")
            return None
        if fault := self._fault_of(pod, record):
            self._give_up(record, fault)
            return None
        if pod.status is not PodStatus.RUNNING or pod.ssh is None:
            return None
        ready = {"pod_id": pod.pod_id, "host": pod.ssh.host, "port": pod.ssh.port}
        ready |= {
            "user": self._rental.user or pod.ssh.user,
            "name": pod.name,
            "cost_usd_per_h": pod.cost_usd_per_h,
        }
        # RUNNING says little: ready is when its ssh server answers with the key that we gave it.
        with contextlib.suppress(BoxUnreachable):
            self._link(job_id, ready, ()).call("prepare", {"wanted": []}, limit_s=30.0)
            self._book.write(dataclasses.replace(record, state=PodState.READY, was_seen=True))
            return ready
        return None

    def link(
        self, job_id: str, facts: Mapping[str, Any], held: tuple[int, ...] = ()
    ) -> SshLink | None:
        if "pod_id" not in facts:
            return None
        record = self._book.read(job_id)
        if record is not None and record.pod_id is not None:
            self._board.watch(record.pod_id)
            with contextlib.suppress(DoorUnavailable):
                self._sweep_once_a_look()
                self._present(record)
                record = self._known_to_be_one(job_id)
                if self._is_gone(record):
                    raise MachineGone(f"pod {record.pod_id} ({record.name}) is gone")
        return self._link(job_id, facts, held)

    def release(self, job_id: str, facts: Mapping[str, Any], link: SshLink | None) -> bool:
        del facts, link
        record = self._book.read(job_id)
        if record is None:
            return True
        if record.state is PodState.INTENDED:
            self._resolve(record)
            return False
        if record.state is not PodState.NONE:
            self._give_up(record, "its job has ended")
            return False
        if record.ending:
            self._confirm(record)
            return False
        if self._a_second_may_come(record):
            return False
        if record.released_at is None:
            now = self._clock.now()
            self._purse.settle(job_id, record.cost_usd(now))
            self._book.write(dataclasses.replace(record, released_at=utc_text(now)))
        shutil.rmtree(self._folder / job_id, ignore_errors=True)
        return True

    def end_at_once(self, job_id: str) -> None:
        """Tell the job's pod to end, now; the follower sees to it that it does."""
        record = self._book.read(job_id)
        if record is not None and record.pod_id is not None:
            with contextlib.suppress(DoorError):
                self._client.terminate(record.pod_id)

    def cost_usd(self, job_id: str) -> float | None:
        """What the job's pods have cost until now, by price and time."""
        record = self._book.read(job_id)
        return None if record is None else record.cost_usd(self._clock.now())

    def sweep(self) -> list[str]:
        pods = self._board.pods()
        found = strays(pods, self._book.all(), prefix=self._prefix, now=self._clock.now())
        return [stray.pod.name for stray in sweep(self._client, found)]

    def _sweep_once_a_look(self) -> None:
        self._board.pods()
        if self._swept_look != self._board.looks:
            self._swept_look = self._board.looks
            self.sweep()

    # Ordering.

    def _order(self, spec: JobSpec, before: PodRecord | None) -> None:
        index = before.candidate if before else 0
        if index >= len(self._rental.candidates):
            assert before is not None
            self._book.write(dataclasses.replace(before, candidate=0))
            raise DoorUnavailable(f"no candidate could be rented; the last: {before.detail}")
        orders = before.orders if before else 0
        if orders >= self._rental.orders_max:
            assert before is not None
            raise MachineGone(f"given up after {orders} pods; the last: {before.detail}")
        candidate = self._rental.candidates[index]
        price = self._prices().get(candidate)
        lease_s = self._lease_s(spec)
        max_usd = 0.0 if price is None else round(price * (lease_s + OVERRUN_S) / 3600, 4)
        now = self._clock.now()
        record = PodRecord(
            job_id=spec.job_id,
            name=f"{self._prefix}{sha256_hex(spec.job_id.encode())[:12]}-{secrets.token_hex(4)}",
            state=PodState.INTENDED,
            candidate=index,
            intended_at=utc_text(now),
            lease_until=utc_text(now + timedelta(seconds=lease_s)),
            max_usd=max_usd,
            orders=orders,
            ending=before.ending if before else (),
            rented=before.rented if before else (),
        )
        if price is None:
            self._next_candidate(record, f"{candidate.gpu}: not in the catalogue")
            return
        if price > self._rental.max_usd_per_h:
            self._next_candidate(record, f"{candidate.gpu}: {price:.2f} USD/h is over the limit")
            return
        if record.cost_usd(now) + max_usd > self._rental.max_usd_per_job:
            self._next_candidate(record, f"{candidate.gpu}: {max_usd:.2f} USD is over the limit")
            return
        try:
            # Those that were given up have cost something, too, and may still be ending.
            total_usd = round(record.cost_usd(now) + PODS_OF_AN_ORDER * max_usd, 4)
            self._purse.approve(spec.job_id, total_usd, usd_per_h=PODS_OF_AN_ORDER * price)
        except BudgetExceeded as error:
            raise DoorUnavailable(
                f"not rented: {error} (an order counts twice until one pod is known of it)",
                remedy=error.remedy,
            ) from error
        order = self._order_of(record, candidate)
        # From here on there may be a pod of this name, or two.
        self._book.write(dataclasses.replace(record, may_be_two=True))
        try:
            created = self._client.create(order, route=self._rental.route)
        except NotPlaced as error:
            self._next_candidate(record, str(error))
        except CreateUnknown:
            raise
        except (DoorError, OperatorError) as error:
            # The client says for each of these that no pod was made.
            self._book.write(
                dataclasses.replace(record, state=PodState.NONE, detail=str(error)[:500])
            )
            raise
        else:
            usd_per_h = created.cost_usd_per_h or price
            created_record = dataclasses.replace(
                record, state=PodState.CREATED, pod_id=created.pod_id, may_be_two=True
            )
            self._book.write(_with_costs(created_record, {created.pod_id: usd_per_h}))

    def _resolve(self, record: PodRecord) -> None:
        """Find out whether the pod of an unanswered order exists, and have one of that name."""
        waited_s = self._age_s(record)
        found = [pod for pod in self._board.pods() if pod.name == record.name]
        if found:
            first, *others = sorted(found, key=lambda pod: pod.pod_id)
            ending = self._told_to_end([pod.pod_id for pod in others])
            found_record = dataclasses.replace(
                record,
                state=PodState.CREATED,
                pod_id=first.pod_id,
                was_seen=True,
                ending=(*record.ending, *ending),
            )
            self._book.write(_with_costs(found_record, _prices_of(found)))
            return
        self._board.watch(record.name)  # counts looks; a name is never listed as an id
        if waited_s > self._rental.visible_s and self._board.times_missing(record.name) >= 3:
            self._book.write(dataclasses.replace(record, state=PodState.NONE))

    def _next_candidate(self, record: PodRecord, detail: str) -> None:
        self._book.write(
            dataclasses.replace(
                record, state=PodState.NONE, candidate=record.candidate + 1, detail=detail[:500]
            )
        )

    def _give_up(self, record: PodRecord, detail: str) -> None:
        assert record.pod_id is not None
        ending = (*record.ending, *self._told_to_end([record.pod_id]))
        ended = dataclasses.replace(
            record, ending=ending, pod_id=None, was_seen=False, orders=record.orders + 1
        )
        self._next_candidate(ended, detail)

    # Looking.

    def _present(self, record: PodRecord) -> Pod | None:
        """The record's pod in the latest list; others of its name are ended."""
        assert record.pod_id is not None
        self._board.watch(record.pod_id)
        namesakes = [pod for pod in self._board.pods() if pod.name == record.name]
        others = [
            pod.pod_id
            for pod in namesakes
            if pod.pod_id != record.pod_id and pod.pod_id not in record.ending
        ]
        found = next((pod for pod in namesakes if pod.pod_id == record.pod_id), None)
        if others or (found and not record.was_seen):
            ending = (*record.ending, *self._told_to_end(others))
            was_seen = record.was_seen or found is not None
            looked = dataclasses.replace(record, ending=ending, was_seen=was_seen)
            self._book.write(_with_costs(looked, _prices_of(namesakes)))
        return found

    def _known_to_be_one(self, job_id: str) -> PodRecord:
        """The job's record after a look; what was promised for a second pod is given back."""
        record = self._book.read(job_id)
        assert record is not None, "a job with a pod has a record"
        if not record.may_be_two or not record.was_seen or self._may_still_be_hidden(record):
            return record
        if any(self._board.times_missing(pod_id) < 2 for pod_id in record.ending):
            return record  # the second one, or one before, may live
        now = self._clock.now()
        total_usd = record.max_usd
        for pod in record.rented:
            total_usd += 0.0 if pod.pod_id == record.pod_id else pod.cost_usd(now)
        usd_per_h = sum(p.usd_per_h for p in record.rented if p.pod_id == record.pod_id)
        with contextlib.suppress(BudgetExceeded):  # a cap was lowered meanwhile: it stays as it is
            self._purse.approve(job_id, round(total_usd, 4), usd_per_h=usd_per_h)
        one = dataclasses.replace(record, may_be_two=False)
        self._book.write(one)
        return one

    def _a_second_may_come(self, record: PodRecord) -> bool:
        """Whether a pod of an order that was given up may still be shown; one that is, is ended."""
        if not record.may_be_two:
            return False
        shown = [pod for pod in self._board.pods() if pod.name == record.name]
        new = [pod for pod in shown if pod.pod_id not in {known.pod_id for known in record.rented}]
        if new:
            ending = (*record.ending, *self._told_to_end([pod.pod_id for pod in new]))
            self._book.write(
                _with_costs(dataclasses.replace(record, ending=ending), _prices_of(new))
            )
        return bool(new) or self._may_still_be_hidden(record)

    def _may_still_be_hidden(self, record: PodRecord) -> bool:
        return self._age_s(record) <= self._rental.visible_s

    def _is_gone(self, record: PodRecord) -> bool:
        if record.pod_id is None or self._board.times_missing(record.pod_id) < 2:
            return False
        return record.was_seen or not self._may_still_be_hidden(record)

    def _fault_of(self, pod: Pod, record: PodRecord) -> str | None:
        if pod.cost_usd_per_h > self._rental.max_usd_per_h:
            return f"it costs {pod.cost_usd_per_h:.2f} USD/h, over max_usd_per_h"
        if pod.status in {PodStatus.EXITED, PodStatus.ERROR, PodStatus.TERMINATED}:
            return f"the pod is {pod.status}"
        if pod.status is PodStatus.RUNNING and pod.num_gpus_seen == 0:
            return "the pod runs with zero GPUs"
        if self._age_s(record) > self._rental.ready_s:
            return f"the pod was not ready after {self._rental.ready_s:g} s ({pod.status})"
        return None

    def _told_to_end(self, pod_ids: list[str]) -> list[str]:
        """Tell them to end; they count as gone once `_confirm` has seen it."""
        for pod_id in pod_ids:
            self._board.watch(pod_id)
            with contextlib.suppress(DoorError):  # `_confirm` tells it again
                self._client.terminate(pod_id)
                self._told_at_look[pod_id] = self._board.looks
        return pod_ids

    def _confirm(self, record: PodRecord) -> None:
        """Drop the endings that the provider has twice not listed; tell the others again."""
        here = {pod.pod_id for pod in self._board.pods()}
        now = utc_text(self._clock.now())
        left = []
        for pod_id in record.ending:
            self._board.watch(pod_id)
            # Told again only by a look that came after the last time.
            if pod_id in here and self._told_at_look.get(pod_id) != self._board.looks:
                self._client.terminate(pod_id)
                self._told_at_look[pod_id] = self._board.looks
            if self._board.times_missing(pod_id) < 2:
                left.append(pod_id)
            else:
                record = record.with_pod(pod_id, until=now)
        if tuple(left) != record.ending:
            self._book.write(dataclasses.replace(record, ending=tuple(left)))

    # What an order says.

    def _order_of(self, record: PodRecord, candidate: Candidate) -> PodOrder:
        host_key = self._key(self._folder / record.job_id / "host_key")
        identity = self._key(self._folder / "identity")
        public_key = identity.with_suffix(".pub").read_text().strip()
        environment = {
            # `startSsh` makes the provider write the account's own keys to PUBLIC_KEY, over ours;
            # our image reads the other one first, other images read the first.
            "PUBLIC_KEY": public_key,
            "SCF_PUBLIC_KEY": public_key,
            "SCF_SSH_HOST_KEY": base64.b64encode(host_key.read_bytes()).decode(),
            "SCF_JOB": record.job_id,
            "SCF_LEASE_UNTIL": record.lease_until,
        }
        return PodOrder(
            name=record.name,
            image=self._rental.image,
            gpu=candidate.gpu,
            terminate_after=parse_utc(record.lease_until),
            num_gpus=self._rental.num_gpus,
            cloud=candidate.cloud,
            data_center=candidate.data_center,
            disk_gb=self._rental.disk_gb,
            min_cuda=self._rental.min_cuda,
            env=environment,
        )

    def _link(self, job_id: str, facts: Mapping[str, Any], held: tuple[int, ...]) -> SshLink:
        folder = self._folder / job_id
        key = (folder / "host_key.pub").read_text().split()
        box = SshBox(
            name=str(facts["pod_id"]),
            host=str(facts["host"]),
            port=int(facts["port"]),
            user=str(facts["user"]),
            host_keys=(f"{key[0]} {key[1]}",),
            identity=self._folder / "identity",
            root=self._rental.root,
            python=self._rental.python,
            bandwidth_kib_s=self._rental.bandwidth_kib_s,
        )
        return SshLink(box, folder, self._sender, held)

    def _prices(self) -> dict[Candidate, float]:
        """Price of a whole pod by candidate, USD/h, from the catalogue of now."""
        offers: dict[str, GpuOffer] = {
            offer.gpu: offer for offer in self._client.gpu_offers(num_gpus=self._rental.num_gpus)
        }
        prices = {
            candidate: offers[candidate.gpu].usd_per_h(candidate.cloud) * self._rental.num_gpus
            for candidate in self._rental.candidates
            if candidate.gpu in offers and offers[candidate.gpu].usd_per_h(candidate.cloud) > 0
        }
        if not prices:
            raise DoorUnavailable("the catalogue has none of the candidates")
        return prices

    def _lease_s(self, spec: JobSpec) -> float:
        return self._rental.ready_s + spec.deadline_s + self._rental.return_s

    def _age_s(self, record: PodRecord) -> float:
        return (self._clock.now() - parse_utc(record.intended_at)).total_seconds()

    @staticmethod
    def _key(path: Path) -> Path:
        """An ssh key pair at `path`, made if it is absent."""
        if not path.with_suffix(".pub").exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.unlink(missing_ok=True)
            made = run_limited(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "scf", "-f", str(path)],
                limit_s=20.0,
            )
            if made.returncode != 0:
                raise OperatorError(f"{path}: ssh-keygen: {made.stderr.strip()[:200]}")
        return path


def _prices_of(pods: Sequence[Pod]) -> dict[str, float]:
    return {pod.pod_id: pod.cost_usd_per_h for pod in pods}


def _with_costs(record: PodRecord, usd_per_h: Mapping[str, float]) -> PodRecord:
    """The record with each of these pods among those that cost; one that was there stays as it is.

    A pod counts from the moment when it was asked for: a little early rather than a little late.
    """
    known = {pod.pod_id for pod in record.rented}
    new = [
        Rented(pod_id=pod_id, usd_per_h=price, since=record.intended_at)
        for pod_id, price in usd_per_h.items()
        if pod_id not in known
    ]
    return dataclasses.replace(record, rented=(*record.rented, *new))

"""The pods and clusters of jobs: ordered, found, given back, and counted (`follower.Machine`).

How each rule of `runpod.py` is kept. Every method can be called again after a crash: what may exist
is in the book before it is asked for, and what was told to end stays in the book until the provider
has twice not listed it. What one order brings is a `Lot`, with one id: a pod's, or a cluster's.
"""

import contextlib
import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from scf.core.clock import Clock, parse_utc, utc_text
from scf.core.errors import BudgetExceeded, DoorError, DoorUnavailable, OperatorError, UsageError
from scf.core.identity import sha256_hex
from scf.dispatch.follower import MachineGone
from scf.dispatch.job import JobSpec
from scf.dispatch.lots import Lot, end_lot
from scf.dispatch.pod_access import PodAccess, nodes_of
from scf.dispatch.pod_board import PodBoard
from scf.dispatch.pod_record import PodBook, PodRecord, PodState, Rented
from scf.dispatch.purse import Purse
from scf.dispatch.rental import Candidate, RunpodSettings
from scf.dispatch.runpod_client import RunpodClient
from scf.dispatch.runpod_errors import CreateUnknown, NotPlaced, RequestRefused
from scf.dispatch.runpod_model import CLUSTER_PODS_MAX, GpuOffer, PodStatus
from scf.dispatch.sweeping import name_prefix, strays, sweep
from scf.dispatch.transfer import BoxUnreachable, Link, SshLink

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
        self._access = PodAccess(home, rental)
        self._prefix = name_prefix(home)
        self._board = PodBoard(client, clock, rental.look_s)
        self._swept_look = 0
        self._told_at_look: dict[str, int] = {}
        if any(record.is_cluster for record in book.all()):
            self._board.expect_clusters()

    def expect(self, spec: JobSpec) -> Mapping[str, Any]:
        if spec.nodes > CLUSTER_PODS_MAX:
            raise UsageError(f"nodes {spec.nodes}: a cluster has at most {CLUSTER_PODS_MAX} pods")
        prices = self._prices(spec.nodes)
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
        lot = self._present(record)
        record = self._known_to_be_one(job_id)
        if lot is None:
            if self._is_gone(record):
                self._give_up(
                    record, f"the {_kind(record)} is gone: somebody or something ended it"
                )
            return None
        fault = self._fault_of(lot, record) or self._price_fault(lot, record)
        if fault is not None:
            self._give_up(self._book.read(job_id) or record, fault)
            return None
        ready = self._access.facts_of(lot)
        if ready is None:
            return None
        # RUNNING says little: ready is when its ssh server answers with the key that we gave it.
        with contextlib.suppress(BoxUnreachable):
            self._access.link(job_id, ready, ()).call("prepare", {"wanted": []}, limit_s=30.0)
            record = self._book.read(job_id) or record
            if lot.cost_usd_per_h > 0:
                record = record.with_pod(lot.lot_id, usd_per_h=lot.cost_usd_per_h)
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
            for node in nodes_of(facts):
                self._board.watch(str(node["pod_id"]))
            with contextlib.suppress(DoorUnavailable):
                self._sweep_once_a_look()
                lot = self._present(record)
                record = self._known_to_be_one(job_id)
                what = f"{_kind(record)} {record.pod_id} ({record.name})"
                if self._is_gone(record):
                    raise MachineGone(f"{what} is gone")
                if lot is not None and (loss := self._loss_in(lot, facts)) is not None:
                    raise MachineGone(f"{what}: {loss}")
        return self._access.link(job_id, facts, held)

    def release(self, job_id: str, facts: Mapping[str, Any], link: Link | None) -> bool:
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
        self._access.forget(job_id)
        return True

    def end_at_once(self, job_id: str) -> None:
        """Tell what the job has to end, now; the follower sees to it that it does."""
        record = self._book.read(job_id)
        if record is not None and record.pod_id is not None:
            with contextlib.suppress(DoorError):
                self._end(record.pod_id, record)

    def cost_usd(self, job_id: str) -> float | None:
        """What the job's pods have cost until now, by price and time."""
        record = self._book.read(job_id)
        return None if record is None else record.cost_usd(self._clock.now())

    def sweep(self) -> list[str]:
        lots = self._board.lots()
        found = strays(lots, self._book.all(), prefix=self._prefix, now=self._clock.now())
        return [stray.lot.name for stray in sweep(self._client, found)]

    def _sweep_once_a_look(self) -> None:
        self._board.lots()
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
        price = self._prices(spec.nodes).get(candidate)
        lease_s = self._lease_s(spec)
        max_usd = _max_usd(price or 0.0, lease_s)
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
            nodes=spec.nodes,
            usd_per_h=price or 0.0,
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
                f"not rented: {error} (an order counts twice until one {_kind(record)} is known "
                "of it)",
                remedy=error.remedy,
            ) from error
        order = self._access.order_of(record, candidate)
        if record.is_cluster:
            self._board.expect_clusters()
        # From here on there may be a pod of this name, or two.
        self._book.write(dataclasses.replace(record, may_be_two=True))
        try:
            created = self._client.create(order, route=self._rental.route)
        except NotPlaced as error:
            self._next_candidate(record, str(error))
        except CreateUnknown:
            raise
        except RequestRefused as error:
            # It would be refused for ever. No pod was made, and the job has no other place.
            self._next_candidate(record, str(error))
            raise MachineGone(f"refused: {error}") from error
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
        found = [lot for lot in self._board.lots() if lot.name == record.name]
        if found:
            first, *others = found
            ending = self._told_to_end([lot.lot_id for lot in others], record)
            found_record = dataclasses.replace(
                record,
                state=PodState.CREATED,
                pod_id=first.lot_id,
                was_seen=True,
                ending=(*record.ending, *ending),
            )
            self._book.write(_with_costs(found_record, _prices_of(found, record)))
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
        ending = (*record.ending, *self._told_to_end([record.pod_id], record))
        ended = dataclasses.replace(
            record, ending=ending, pod_id=None, was_seen=False, orders=record.orders + 1
        )
        self._next_candidate(ended, detail)

    # Looking.

    def _present(self, record: PodRecord) -> Lot | None:
        """What the record's order brought, in the latest list; others of its name are ended."""
        assert record.pod_id is not None
        self._board.watch(record.pod_id)
        lots = self._board.lots()
        found = next((lot for lot in lots if lot.lot_id == record.pod_id), None)
        namesakes = [lot for lot in lots if lot.name == record.name and lot is not found]
        others = [lot.lot_id for lot in namesakes if lot.lot_id not in record.ending]
        if others or (found and not record.was_seen):
            ending = (*record.ending, *self._told_to_end(others, record))
            was_seen = record.was_seen or found is not None
            looked = dataclasses.replace(record, ending=ending, was_seen=was_seen)
            ours = [*namesakes, *([found] if found else [])]
            self._book.write(_with_costs(looked, _prices_of(ours, record)))
        return found

    def _known_to_be_one(self, job_id: str) -> PodRecord:
        """The job's record after a look; what was promised for a second one is given back."""
        record = self._book.read(job_id)
        assert record is not None, "a job with a pod has a record"
        if not record.may_be_two or not record.was_seen or self._may_still_be_hidden(record):
            return record
        if any(self._board.times_missing(lot_id) < 2 for lot_id in record.ending):
            return record  # the second one, or one before, may live
        now = self._clock.now()
        total_usd = record.max_usd
        for lot in record.rented:
            total_usd += 0.0 if lot.pod_id == record.pod_id else lot.cost_usd(now)
        usd_per_h = sum(p.usd_per_h for p in record.rented if p.pod_id == record.pod_id)
        with contextlib.suppress(BudgetExceeded):  # a cap was lowered meanwhile: it stays as it is
            self._purse.approve(job_id, round(total_usd, 4), usd_per_h=usd_per_h)
        one = dataclasses.replace(record, may_be_two=False)
        self._book.write(one)
        return one

    def _a_second_may_come(self, record: PodRecord) -> bool:
        """Whether one of an order that was given up may still be shown; one that is, is ended."""
        if not record.may_be_two:
            return False
        shown = [lot for lot in self._board.lots() if lot.name == record.name]
        new = [lot for lot in shown if lot.lot_id not in {known.pod_id for known in record.rented}]
        if new:
            ending = (*record.ending, *self._told_to_end([lot.lot_id for lot in new], record))
            ended = dataclasses.replace(record, ending=ending)
            self._book.write(_with_costs(ended, _prices_of(new, record)))
        return bool(new) or self._may_still_be_hidden(record)

    def _may_still_be_hidden(self, record: PodRecord) -> bool:
        return self._age_s(record) <= self._rental.visible_s

    def _is_gone(self, record: PodRecord) -> bool:
        if record.pod_id is None or self._board.times_missing(record.pod_id) < 2:
            return False
        return record.was_seen or not self._may_still_be_hidden(record)

    def _fault_of(self, lot: Lot, record: PodRecord) -> str | None:
        if lot.cost_usd_per_h > self._rental.max_usd_per_h:
            return f"it costs {lot.cost_usd_per_h:.2f} USD/h, over max_usd_per_h"
        if lot.ended_pod is not None:
            return f"the pod is {lot.ended_pod.status}"
        for pod in lot.pods:
            if pod.status is PodStatus.RUNNING and pod.num_gpus_seen == 0:
                return "the pod runs with zero GPUs"
            # A cluster's order cannot ask for it, so it may come with an older driver.
            if lot.is_cluster and _is_older(pod.cuda, self._rental.min_cuda):
                return f"its host has CUDA {pod.cuda}, older than min_cuda {self._rental.min_cuda}"
        if self._age_s(record) > self._rental.ready_s:
            return (
                f"the {_kind(record)} was not ready after {self._rental.ready_s:g} s ({lot.status})"
            )
        return None

    def _price_fault(self, lot: Lot, record: PodRecord) -> str | None:
        """Promise anew what costs more than it was offered for; why that cannot be."""
        if not record.usd_per_h or lot.cost_usd_per_h <= 1.001 * record.usd_per_h:
            return None
        lease = parse_utc(record.lease_until) - parse_utc(record.intended_at)
        max_usd = _max_usd(lot.cost_usd_per_h, lease.total_seconds())
        dearer = record.with_pod(lot.lot_id, usd_per_h=lot.cost_usd_per_h)
        dearer = dataclasses.replace(dearer, max_usd=max_usd, usd_per_h=lot.cost_usd_per_h)
        before_usd = dearer.cost_usd(self._clock.now()) - sum(
            pod.cost_usd(self._clock.now()) for pod in dearer.rented if pod.pod_id == lot.lot_id
        )
        self._book.write(dearer)
        if before_usd + max_usd > self._rental.max_usd_per_job:
            return f"it costs {lot.cost_usd_per_h:.2f} USD/h: {max_usd:.2f} USD is over the limit"
        times = PODS_OF_AN_ORDER if record.may_be_two else 1
        try:
            total_usd = round(before_usd + times * max_usd, 4)
            self._purse.approve(record.job_id, total_usd, usd_per_h=times * lot.cost_usd_per_h)
        except BudgetExceeded as error:
            return f"it costs {lot.cost_usd_per_h:.2f} USD/h, more than was offered: {error}"
        return None

    def _loss_in(self, lot: Lot, facts: Mapping[str, Any]) -> str | None:
        """Which of the pods that a job runs on is lost; None while all are there."""
        for number, node in enumerate(nodes_of(facts)):
            if self._board.times_missing(str(node["pod_id"])) >= 2:
                return f"node {number} (pod {node['pod_id']}) is gone"
        if lot.ended_pod is not None:
            return f"pod {lot.ended_pod.pod_id} is {lot.ended_pod.status}"
        return None

    def _told_to_end(self, lot_ids: list[str], record: PodRecord) -> list[str]:
        """Tell them to end; they count as gone once `_confirm` has seen it."""
        for lot_id in lot_ids:
            self._board.watch(lot_id)
            with contextlib.suppress(DoorError):  # `_confirm` tells it again
                self._end(lot_id, record)
                self._told_at_look[lot_id] = self._board.looks
        return lot_ids

    def _end(self, lot_id: str, record: PodRecord) -> None:
        unseen = Lot(lot_id, record.name, 0, (), record.is_cluster, self._clock.now())
        end_lot(self._client, self._board.last_seen(lot_id) or unseen)

    def _confirm(self, record: PodRecord) -> None:
        """Drop the endings that the provider has twice not listed; tell the others again."""
        here = {lot.lot_id for lot in self._board.lots()}
        now = utc_text(self._clock.now())
        left = []
        for lot_id in record.ending:
            self._board.watch(lot_id)
            # Told again only by a look that came after the last time.
            if lot_id in here and self._told_at_look.get(lot_id) != self._board.looks:
                self._end(lot_id, record)
                self._told_at_look[lot_id] = self._board.looks
            if self._board.times_missing(lot_id) < 2:
                left.append(lot_id)
            else:
                record = record.with_pod(lot_id, until=now)
        if tuple(left) != record.ending:
            self._book.write(dataclasses.replace(record, ending=tuple(left)))

    # What it costs.

    def _prices(self, nodes: int) -> dict[Candidate, float]:
        """Price of all pods of an order by candidate, USD/h, from the catalogue of now.

        The catalogue has no price for a cluster; its members are taken to cost what such pods do in
        the secure cloud, and say what they do cost once they are there (`_price_fault`).
        """
        num_gpus = self._rental.num_gpus
        found = self._client.gpu_offers(
            num_gpus=num_gpus, product="CLUSTER" if nodes > 1 else "POD"
        )
        offers: dict[str, GpuOffer] = {offer.gpu: offer for offer in found}
        prices = {}
        for candidate in self._rental.candidates:
            cloud = "SECURE" if nodes > 1 else candidate.cloud
            if candidate.gpu in offers and (price := offers[candidate.gpu].usd_per_h(cloud)) > 0:
                prices[candidate] = price * num_gpus * nodes
        if not prices:
            raise DoorUnavailable("the catalogue has none of the candidates")
        return prices

    def _lease_s(self, spec: JobSpec) -> float:
        return self._rental.ready_s + spec.deadline_s + self._rental.return_s

    def _age_s(self, record: PodRecord) -> float:
        return (self._clock.now() - parse_utc(record.intended_at)).total_seconds()


def _max_usd(usd_per_h: float, lease_s: float) -> float:
    """What it can cost at that price until its lease ends, ended a little late."""
    return round(usd_per_h * (lease_s + OVERRUN_S) / 3600, 4)


def _kind(record: PodRecord) -> str:
    return "cluster" if record.is_cluster else "pod"


def _is_older(version: str | None, wanted: str | None) -> bool:
    """Whether a host says a CUDA version, and one before that which is wanted."""
    if version is None or wanted is None:
        return False
    with contextlib.suppress(ValueError):
        return tuple(map(int, version.split("."))) < tuple(map(int, wanted.split(".")))
    return False


def _prices_of(lots: Sequence[Lot], record: PodRecord) -> dict[str, float]:
    """What each costs, or was asked for at: members of a cluster may not be there yet."""
    return {lot.lot_id: max(lot.cost_usd_per_h, record.usd_per_h) for lot in lots}


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

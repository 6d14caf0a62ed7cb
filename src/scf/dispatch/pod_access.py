"""How a rented pod is ordered so that it can be trusted, and reached afterwards: keys and links.

A pod's host key is made here and travels with the order, so its ssh server is known in advance. All
members of a cluster are made from one order: they share it.
"""

import base64
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scf.core.clock import parse_utc
from scf.core.errors import OperatorError
from scf.dispatch.group_link import GroupLink
from scf.dispatch.limited import run_limited
from scf.dispatch.lots import Lot
from scf.dispatch.pod_record import PodRecord
from scf.dispatch.remote import sender_of
from scf.dispatch.rental import Candidate, RunpodSettings
from scf.dispatch.runpod_model import ORDER_VARIABLE, PodOrder, PodStatus
from scf.dispatch.transfer import SshBox, SshLink


class PodAccess:
    """Keys of one home's pods, what an order says, and links to what it brought."""

    def __init__(self, home: Path, rental: RunpodSettings) -> None:
        self._folder = home / "runpod"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sender = sender_of(home)
        self._rental = rental

    def order_of(self, record: PodRecord, candidate: Candidate) -> PodOrder:
        """The order of a record, with its host key and ours."""
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
            ORDER_VARIABLE: record.name,
        }
        if record.is_cluster:
            environment["SCF_CLUSTER_PODS"] = str(record.nodes)
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
            num_pods=record.nodes,
        )

    def facts_of(self, lot: Lot) -> dict[str, Any] | None:
        """Where its pods are reached; None while one of them cannot be."""
        nodes = []
        for pod in lot.pods:
            if pod.status is not PodStatus.RUNNING or pod.ssh is None:
                return None
            user = self._rental.user or pod.ssh.user
            nodes.append(
                {"pod_id": pod.pod_id, "host": pod.ssh.host, "port": pod.ssh.port, "user": user}
            )
        if not lot.is_complete:
            return None
        facts = {**nodes[0], "name": lot.name, "cost_usd_per_h": lot.cost_usd_per_h}
        if not lot.is_cluster:
            return facts
        return facts | {"cluster_id": lot.lot_id, "address": lot.address, "peers": nodes[1:]}

    def link(self, job_id: str, facts: Mapping[str, Any], held: tuple[int, ...]) -> SshLink:
        """The way to a pod, or to all members of a cluster."""
        folder = self._folder / job_id
        first, *peers = [
            SshLink(self._box(folder, node), folder, self._sender, held) for node in nodes_of(facts)
        ]
        return GroupLink([first, *peers], str(facts["address"])) if peers else first

    def forget(self, job_id: str) -> None:
        """Take the job's host key away."""
        shutil.rmtree(self._folder / job_id, ignore_errors=True)

    def _box(self, folder: Path, node: Mapping[str, Any]) -> SshBox:
        key = (folder / "host_key.pub").read_text().split()
        return SshBox(
            name=str(node["pod_id"]),
            host=str(node["host"]),
            port=int(node["port"]),
            user=str(node["user"]),
            host_keys=(f"{key[0]} {key[1]}",),
            identity=self._folder / "identity",
            root=self._rental.root,
            python=self._rental.python,
            bandwidth_kib_s=self._rental.bandwidth_kib_s,
        )

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


def nodes_of(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Where each pod is reached, node 0 first."""
    return [facts, *(facts.get("peers") or [])]

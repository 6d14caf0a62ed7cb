"""Settings of the doors: where jobs run, in which order, and what a rented machine may cost.

`[doors]`, `[ssh]`, `[runpod]` and `[ray]` of scf.toml. No secret stands here: the RunPod API key
comes from the environment, the keyring or a 0600 file (`scf doctor` says from which), a Ray
cluster's token from a 0600 file. An empty text and a zero mean "not set".
"""

from dataclasses import dataclass

DOORS = ("local", "ssh", "runpod", "ray")
CLOUDS = ("SECURE", "COMMUNITY")
ROUTES = ("graphql", "rest")


@dataclass(frozen=True, kw_only=True)
class DoorsSection:
    """Which doors there are.

    Attributes:
        order: Doors in order of preference: `local`, `ssh`, `runpod`, `ray`. The first that can
            take a training job gets it. Measuring always happens on this machine.
    """

    order: tuple[str, ...] = ("local",)


@dataclass(frozen=True, kw_only=True)
class SshSection:
    """A machine of one's own that takes jobs (docs/operations/ssh-door.md).

    Attributes:
        name: What we call it; lower-case letters, digits and -.
        host: Name or address; empty: there is no such machine.
        port: TCP port of its ssh server.
        user: Login name there.
        host_keys: Its public host keys (`ssh-ed25519 AAAA...`), read on the machine itself.
        peers: More machines that train together with it, `HOST[:PORT] KEY-TYPE KEY` each, with the
            same user, root and Python; all must reach `host`. Empty: it trains alone.
        identity: File of our private key; empty leaves it to the running ssh agent.
        root: Folder there for everything of ours.
        python: Its Python, 3.11 or newer, with what training needs.
        bandwidth_kib_s: Upper limit for transfers, each way; 0 for none.
        cache_max_bytes: What was used longest ago leaves its cache above this; 0 for no limit.
        look_s: Pause between looks at a running job; a lost box costs at most this much work.
    """

    name: str = "box"
    host: str = ""
    port: int = 22
    user: str = ""
    host_keys: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    identity: str = ""
    root: str = ".scf-worker"
    python: str = "python3"
    bandwidth_kib_s: int = 0
    cache_max_bytes: int = 0
    look_s: float = 15.0


@dataclass(frozen=True, kw_only=True)
class RunpodSection:
    """What is rented, and for how much at most (docs/operations/first-h100-run.md).

    Attributes:
        image: Container image of the worker, best by digest; empty: nothing is rented.
        gpus: GPU types in order of preference, as the provider's catalogue names them.
        data_centers: Where, in order of preference; empty leaves it to the provider.
        cloud: `SECURE` or `COMMUNITY`.
        nodes: Pods that train together on one job; more than 1 rents a cluster, which the provider
            cannot be told to end at its lease (docs/operations/several-gpus.md).
        num_gpus: GPUs in a pod.
        disk_gb: Disk of a pod.
        min_cuda: Oldest CUDA version of the host's driver; our image's torch needs 13.0.
        user: Login on the pod; empty: as the provider says it (`root`). Our image knows `worker`.
        max_usd_per_h: What costs more is not rented: a pod, or all pods of a cluster together.
        max_usd_per_job: Price times lease of all pods of a job stays below.
        ready_s: From the order until ssh answers; then the next candidate is tried.
        return_s: Part of the lease after the job's deadline, in which its outputs come back.
        look_s: Pause between two calls that list all pods, and between looks at a job.
        visible_s: A pod that was ordered may be missing from lists this long.
        route: `graphql` (the provider ends the pod at its lease) or `rest` (it does not).
        root: Folder on the pod.
        python: The image's Python.
        bandwidth_kib_s: Upper limit for transfers; 0 for none.
        key_file: File with the API key, mode 0600; empty: `runpod.key` in the home.
        rest: Address of REST v2; SCF_RUNPOD_REST goes before it; empty: the provider's.
        graphql: Address of GraphQL; SCF_RUNPOD_GRAPHQL goes before it; empty: the provider's.
    """

    image: str = ""
    gpus: tuple[str, ...] = ("NVIDIA H100 80GB HBM3",)
    data_centers: tuple[str, ...] = ()
    cloud: str = "SECURE"
    nodes: int = 1
    num_gpus: int = 1
    disk_gb: int = 80
    min_cuda: str = "13.0"
    user: str = "worker"
    max_usd_per_h: float = 5.0
    max_usd_per_job: float = 25.0
    ready_s: float = 1200.0
    return_s: float = 1800.0
    look_s: float = 20.0
    visible_s: float = 120.0
    route: str = "graphql"
    root: str = "/workspace/scf"
    python: str = "python3"
    bandwidth_kib_s: int = 0
    key_file: str = ""
    rest: str = ""
    graphql: str = ""


@dataclass(frozen=True, kw_only=True)
class RaySection:
    """A LAN of one's own machines that Ray holds together (docs/operations/ray-door.md).

    Attributes:
        address: `http://HOST:8265`, the head's dashboard; empty: there is no cluster.
        token_file: File with the cluster's token, mode 0600; empty: `ray.token` in the home.
        nodes: Machines that train together; the one on which a job begins is the first.
        procs: Processes on each: as many as it has GPUs, else 1.
        cpus: CPUs that each process takes.
        gpus: GPUs that each process takes.
        node: Address of the machine on which jobs begin; empty: the head.
        root: Folder on each machine for everything of ours.
        python: The machines' Python, 3.11 or newer, with `scf[train,ray]`.
        ports: Where the gates of jobs listen, on the machine on which they begin: FIRST-LAST.
        look_s: Pause between looks at a running job; a lost cluster costs at most this much work.
    """

    address: str = ""
    token_file: str = ""
    nodes: int = 1
    procs: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    node: str = ""
    root: str = "~/.scf-worker"
    python: str = "python3"
    ports: str = "29700-29799"
    look_s: float = 15.0


def door_rules(
    doors: DoorsSection, ssh: SshSection, runpod: RunpodSection, ray: RaySection
) -> list[tuple[str, object, bool, str]]:
    """(name, value, whether it is good, what is wanted) of each value that can be wrong."""
    order = doors.order
    return [
        ("[doors] order", list(order),
         bool(order) and set(order) <= set(DOORS) and len(set(order)) == len(order),
         f"one or more of {', '.join(DOORS)}, each once"),
        ("[ssh] host_keys", list(ssh.host_keys), not ssh.host or bool(ssh.host_keys),
         "given where host is: on the box, `cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub`"),
        ("[ssh] peers", list(ssh.peers), all(len(row.split()) == 3 for row in ssh.peers),
         "texts like 'box2.lan:22 ssh-ed25519 AAAA...'"),
        ("[ssh] port", ssh.port, 0 < ssh.port < 65536, "a TCP port"),
        ("[ssh] look_s", ssh.look_s, ssh.look_s > 0, "more than 0"),
        ("[runpod] gpus", list(runpod.gpus), bool(runpod.gpus), "at least one GPU type"),
        ("[runpod] cloud", runpod.cloud, runpod.cloud in CLOUDS, " | ".join(CLOUDS)),
        ("[runpod] route", runpod.route, runpod.route in ROUTES, " | ".join(ROUTES)),
        ("[runpod] nodes", runpod.nodes, 1 <= runpod.nodes <= 250, "1 to 250"),
        ("[runpod] num_gpus", runpod.num_gpus, 1 <= runpod.num_gpus <= 8, "1 to 8"),
        ("[runpod] disk_gb", runpod.disk_gb, runpod.disk_gb > 0, "more than 0"),
        ("[runpod] max_usd_per_h", runpod.max_usd_per_h, runpod.max_usd_per_h > 0, "more than 0"),
        ("[runpod] max_usd_per_job", runpod.max_usd_per_job, runpod.max_usd_per_job > 0,
         "more than 0"),
        ("[runpod] look_s", runpod.look_s, runpod.look_s > 0, "more than 0"),
        ("[runpod] ready_s", runpod.ready_s, runpod.ready_s > 0, "more than 0"),
        ("[runpod] return_s", runpod.return_s, runpod.return_s >= 0, "0 or more"),
        ("[ray] address", ray.address,
         not ray.address or ray.address.startswith(("http://", "https://")), "http://HOST:8265"),
        ("[ray] nodes", ray.nodes, ray.nodes > 0, "1 or more"),
        ("[ray] procs", ray.procs, ray.procs > 0, "1 or more"),
        ("[ray] cpus", ray.cpus, ray.cpus >= 0, "0 or more"),
        ("[ray] gpus", ray.gpus, ray.gpus >= 0, "0 or more"),
        ("[ray] ports", ray.ports, _is_range(ray.ports), "FIRST-LAST, TCP ports"),
        ("[ray] look_s", ray.look_s, ray.look_s > 0, "more than 0"),
    ]  # fmt: skip


def _is_range(text: str) -> bool:
    first, _, last = text.partition("-")
    is_told = first.isdecimal() and last.isdecimal()
    return is_told and 0 < int(first) <= int(last) < 65536

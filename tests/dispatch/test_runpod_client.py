"""The client says what RunPod's documents allow, believes nothing ill-formed, and keeps its secret."""

import logging
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from fakes.runpod import openapi
from fakes.runpod.server import FakeRunpod
from fakes.runpod.world import (
    BROKEN,
    GARBAGE,
    INVALID,
    LOST_REPLY,
    LOST_REQUEST,
    NO_BALANCE,
    NO_CAPACITY,
    NO_POOL,
    TOO_MANY,
    Answer,
    PodScript,
)
from scf.core.errors import ScfError, UsageError
from scf.dispatch.runpod_client import ApiKey, RunpodClient
from scf.dispatch.runpod_errors import (
    BalanceTooLow,
    CreateUnknown,
    KeyRefused,
    NotPlaced,
    ProviderFault,
    RateLimited,
    RequestRefused,
)
from scf.dispatch.runpod_model import (
    Membership,
    PodOrder,
    PodStatus,
    cluster_body,
    graphql_input,
    rest_body,
)
from support.clocks import ManualClock

ORDER = PodOrder(
    name="scf-run-1-train-1-abcd",
    image="ghcr.io/x/worker@sha256:" + "0" * 64,
    gpu="NVIDIA H100 80GB HBM3",
    terminate_after=datetime(2030, 1, 1, 12, 30, 5, 999, tzinfo=UTC),
    data_center="US-CA-2",
    env={"SCF_JOB": "run-1", "QUOTES": 'a" }], dockerArgs: "evil'},
)
ROUTES = pytest.mark.parametrize("route", ["graphql", "rest"])


@pytest.fixture
def provider() -> Iterator[FakeRunpod]:
    with FakeRunpod() as provider:
        yield provider


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def client(provider: FakeRunpod, clock: ManualClock) -> Iterator[RunpodClient]:
    client = RunpodClient(
        ApiKey(provider.key), rest=provider.rest, graphql=provider.graphql, clock=clock
    )
    yield client
    client.close()


# Requests.


@pytest.mark.parametrize(
    "order",
    [ORDER, replace(ORDER, min_cuda=None, data_center=None, env={}), replace(ORDER, num_gpus=8)],
)
def test_the_rest_body_is_what_the_document_allows(order: PodOrder) -> None:
    openapi.required_document()

    assert openapi.errors_of("CreatePodRequest", rest_body(order)) == []


@pytest.mark.parametrize("extra", ["interruptible", "terminateAfter", "gpuTypeIds"])
def test_rest_has_no_field_for_these(extra: str) -> None:
    """The reason why GraphQL creates by default; when one of these is allowed, that can change."""
    openapi.required_document()

    assert openapi.errors_of("CreatePodRequest", rest_body(ORDER) | {extra: "x"})


@pytest.mark.parametrize(
    "order",
    [replace(ORDER, num_pods=2), replace(ORDER, num_pods=250, num_gpus=8, data_center=None)],
)
def test_the_cluster_body_is_what_the_document_allows(order: PodOrder) -> None:
    openapi.required_document()

    assert openapi.errors_of("CreateClusterRequest", cluster_body(order)) == []


@pytest.mark.parametrize("extra", ["terminateAfter", "stopAfter", "cloud", "gpu", "registry"])
def test_a_cluster_has_no_field_for_these(extra: str) -> None:
    """The reason why a cluster has one hand fewer; when one is allowed, that can change."""
    openapi.required_document()
    body = cluster_body(replace(ORDER, num_pods=2))

    assert openapi.errors_of("CreateClusterRequest", body | {extra: "x"})


@pytest.mark.parametrize("num_pods", [0, 251])
def test_an_order_has_as_many_pods_as_the_document_allows(num_pods: int) -> None:
    with pytest.raises(UsageError, match="2 to 250"):
        replace(ORDER, num_pods=num_pods)


def test_the_graphql_input_carries_the_end_of_the_pod_and_values_as_values() -> None:
    """ISO time in UTC to the second; a value with quotes stays a value."""
    value = graphql_input(ORDER)

    assert value["terminateAfter"] == "2030-01-01T12:30:05Z"
    assert {"key": "QUOTES", "value": 'a" }], dockerArgs: "evil'} in value["env"]
    assert value["ports"] == "22/tcp"


def test_every_path_that_is_called_is_in_the_document(
    provider: FakeRunpod, client: RunpodClient
) -> None:
    """With its method, and with no query parameter that the document does not know."""
    paths = openapi.required_document()["paths"]
    seen = []
    original = client._http.stream

    def record(method: str, address: str, **kwargs):
        seen.append((method.lower(), address, set(kwargs.get("params") or {})))
        return original(method, address, **kwargs)

    client._http.stream = record
    pod_id = client.create(ORDER, route="rest").pod_id
    client.list_pods()
    client.get_pod(pod_id)
    client.gpu_offers()
    client.billing(provider.now(), provider.now(), pod_id=pod_id)
    client.ssh_keys()
    list(client.logs(pod_id, source="container"))
    client.terminate(pod_id)
    cluster_id = client.create(replace(ORDER, num_pods=2)).pod_id
    client.list_clusters()
    client.get_cluster(cluster_id)
    client.cluster_pods(cluster_id)
    client.cluster_billing(provider.now(), provider.now(), cluster_id=cluster_id)
    client.terminate_cluster(cluster_id)

    known = openapi.required_document()["components"]["parameters"]
    assert len(seen) == 14
    for method, address, query in seen:
        path = "/v2" + address.removeprefix(provider.rest)
        path = path.replace(pod_id, "{id}").replace(cluster_id, "{id}")
        operation = paths[path][method]
        rows = [*operation.get("parameters", []), *paths[path].get("parameters", [])]
        rows = [known[row["$ref"].rpartition("/")[2]] if "$ref" in row else row for row in rows]
        assert query <= {row["name"] for row in rows}, path


# What comes back.


@ROUTES
def test_a_pod_is_rented_seen_and_given_back(client: RunpodClient, route: str) -> None:
    created = client.create(ORDER, route=route)

    assert created.name == ORDER.name
    assert created.cost_usd_per_h == 2.69
    assert [pod.pod_id for pod in client.list_pods()] == [created.pod_id]
    pod = client.get_pod(created.pod_id)
    assert pod is not None
    assert pod.status is PodStatus.RUNNING
    assert pod.ssh is not None
    assert (pod.ssh.port, pod.num_gpus_seen, pod.data_center) == (2222, 1, "US-CA-2")
    client.terminate(created.pod_id)
    assert client.get_pod(created.pod_id) is None
    client.terminate(created.pod_id)
    assert client.list_pods() == []


@ROUTES
def test_a_cluster_is_rented_seen_and_given_back(
    provider: FakeRunpod, client: RunpodClient, route: str
) -> None:
    """By REST whatever the route: there is one way. Its members are pods, and end with it."""
    created = client.create(replace(ORDER, num_pods=2, num_gpus=8), route=route)

    assert (created.name, created.cost_usd_per_h) == (ORDER.name, 0.0)
    (cluster,) = client.list_clusters()
    assert cluster == client.get_cluster(created.pod_id)
    assert (cluster.cluster_id, cluster.name) == (created.pod_id, ORDER.name)
    assert (cluster.num_pods, cluster.num_placed) == (2, 2)
    client.list_pods()
    pods = client.cluster_pods(created.pod_id)
    assert pods == client.list_pods()
    assert [pod.member for pod in pods] == [
        Membership(created.pod_id, rank, "127.0.0.1") for rank in (0, 1)
    ]
    assert [pod.cost_usd_per_h for pod in pods] == [2.69 * 8] * 2

    with pytest.raises(RequestRefused, match="belongs to a cluster"):
        client.terminate(pods[0].pod_id)
    assert client.terminate_cluster(created.pod_id)
    assert not client.terminate_cluster(created.pod_id)
    assert client.get_cluster(created.pod_id) is None
    assert client.cluster_pods(created.pod_id) == []
    assert provider.alive() == client.list_clusters() == []


def test_a_member_that_outlives_its_cluster_can_be_ended(
    provider: FakeRunpod, client: RunpodClient
) -> None:
    provider.pod_scripts.extend([PodScript(), PodScript(deaf=9)])
    cluster_id = client.create(replace(ORDER, num_pods=2)).pod_id
    client.terminate_cluster(cluster_id)
    (left,) = client.list_pods()

    assert left.member is not None
    assert left.member.cluster_id == cluster_id
    client.terminate(left.pod_id)


def test_only_graphql_gives_the_pod_an_end(provider: FakeRunpod, client: RunpodClient) -> None:
    client.create(ORDER, route="graphql")
    client.create(ORDER, route="rest")

    assert [pod.terminate_after for pod in provider.alive()] == [
        ORDER.terminate_after.replace(microsecond=0),
        None,
    ]


def test_a_running_pod_may_have_no_ports_and_no_gpus(
    provider: FakeRunpod, client: RunpodClient
) -> None:
    provider.pod_scripts.append(PodScript(until_running=0, has_ports=False, num_gpus=0))
    client.create(ORDER)

    pod = client.list_pods()[0]

    assert pod.status is PodStatus.RUNNING
    assert (pod.ssh, pod.num_gpus_seen) == (None, 0)


def test_prices_money_bills_and_keys(provider: FakeRunpod, client: RunpodClient) -> None:
    offers = {offer.gpu: offer for offer in client.gpu_offers()}
    offer = offers["NVIDIA H100 80GB HBM3"]
    assert (offer.usd_per_h("SECURE"), offer.usd_per_h("COMMUNITY")) == (2.69, 2.59)
    assert (offer.availability, offer.data_centers["US-CA-2"]) == ("HIGH", "LOW")

    pod_id = client.create(ORDER).pod_id
    start = provider.now()
    provider.pass_time(1800)
    assert client.account().balance_usd == pytest.approx(100 - 2.69 / 2, abs=0.01)
    assert client.account().spend_usd_per_h == 2.69
    cluster_id = client.create(replace(ORDER, num_pods=2)).pod_id
    provider.pass_time(3600)
    (row,) = client.cluster_billing(start, provider.now(), cluster_id=cluster_id)
    assert (row.pod_id, row.total_usd) == (cluster_id, pytest.approx(2 * 2.69, abs=0.01))
    client.terminate_cluster(cluster_id)
    bill = client.billing(start, provider.now(), pod_id=pod_id)
    assert [row.pod_id for row in bill] == [pod_id]
    assert bill[0].total_usd == pytest.approx(2.69 * 1.5, abs=0.01)
    assert client.ssh_keys() == ["ssh-ed25519 AAAA registered"]


def test_logs_go_on_after_the_last_event(provider: FakeRunpod, client: RunpodClient) -> None:
    pod_id = client.create(ORDER).pod_id
    first = list(client.logs(pod_id, tail=1))
    provider.all_pods[0].log += ["x" * 50_000, "a new line"]

    more = list(client.logs(pod_id, after=first[-1].event_id))

    assert [line.text for line in first] == ["sshd listens"]
    assert [len(line.text) for line in more] in ([10], [10_000, 10])
    assert more[-1].text == "a new line"
    assert len(list(client.logs(pod_id, lines_max=1))) == 1


# Faults.


@ROUTES
@pytest.mark.parametrize("num_pods", [1, 2])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (NO_CAPACITY, NotPlaced),
        (NO_BALANCE, BalanceTooLow),
        (INVALID, RequestRefused),
        (TOO_MANY, RateLimited),
        (BROKEN, CreateUnknown),
        (LOST_REQUEST, CreateUnknown),
        (LOST_REPLY, CreateUnknown),
        (GARBAGE, CreateUnknown),
    ],
)
def test_a_failed_create_says_what_to_do_next_and_is_not_repeated(
    provider: FakeRunpod, client: RunpodClient, route: str, fault: object, error: type[ScfError],
    num_pods: int,
) -> None:  # fmt: skip
    operation = "create" if num_pods == 1 else "create cluster"
    provider.script(operation, fault)

    with pytest.raises(error) as caught:
        client.create(replace(ORDER, num_pods=num_pods), route=route)

    assert type(caught.value) is error
    assert provider.count(operation) == 1


def test_a_pool_that_is_closed_to_us_is_a_matter_of_the_candidate(
    provider: FakeRunpod, client: RunpodClient
) -> None:
    provider.script("create", NO_POOL)
    with pytest.raises(NotPlaced):
        client.create(ORDER, route="rest")


def test_an_unreachable_provider_has_made_nothing() -> None:
    client = RunpodClient(
        ApiKey("k"), rest="http://127.0.0.1:9/v2", graphql="http://127.0.0.1:9/graphql"
    )
    with pytest.raises(ProviderFault, match="cannot be reached"):
        client.create(ORDER)
    client.close()


@pytest.mark.parametrize("fault", [BROKEN, LOST_REQUEST, LOST_REPLY])
def test_reading_and_ending_are_repeated(
    provider: FakeRunpod, client: RunpodClient, fault: object
) -> None:
    pod_id = client.create(ORDER).pod_id
    provider.script("list", fault, fault)
    provider.script("terminate", fault)

    client.list_pods()
    client.terminate(pod_id)

    assert provider.alive() == []
    provider.script("list", fault, fault, fault)
    with pytest.raises(ProviderFault):
        client.list_pods()


def test_an_answer_of_another_form_is_a_fault_of_the_provider(
    provider: FakeRunpod, client: RunpodClient
) -> None:
    client.create(ORDER)
    provider.script("list", GARBAGE)
    with pytest.raises(ProviderFault, match="no JSON"):
        client.list_pods()
    provider.described = lambda pod: {"id": pod.pod_id}
    with pytest.raises(ProviderFault, match="another form"):
        client.list_pods()


def test_an_endless_answer_is_cut(
    provider: FakeRunpod, client: RunpodClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scf.dispatch.runpod_reply.REPLY_MAX_BYTES", 1000)
    provider.ssh_keys = ["x" * 2000]
    with pytest.raises(ProviderFault, match="1000 bytes"):
        client.ssh_keys()


def test_a_wrong_key_is_the_operators_matter(provider: FakeRunpod) -> None:
    client = RunpodClient(ApiKey("other"), rest=provider.rest, graphql=provider.graphql)
    for call in (client.list_pods, lambda: client.create(ORDER)):
        with pytest.raises(KeyRefused):
            call()
    client.close()


def test_retry_after_is_kept(
    provider: FakeRunpod, client: RunpodClient, clock: ManualClock
) -> None:
    """Until then no call leaves this machine; the caller is told for how long."""
    provider.script("list", TOO_MANY)
    with pytest.raises(RateLimited) as caught:
        client.list_pods()
    assert caught.value.retry_after_s == 7
    with pytest.raises(RateLimited):
        client.get_pod("x")
    assert provider.count("get") == 0

    clock.sleep(7.1)
    assert client.list_pods() == []


def test_a_limit_that_is_used_up_is_not_passed(
    provider: FakeRunpod, client: RunpodClient, clock: ManualClock
) -> None:
    """The reply that says `r=0` is the last until the window is over."""
    provider.calls_per_minute = 2
    client.list_pods()
    client.list_pods()
    with pytest.raises(RateLimited):
        client.list_pods()

    assert provider.count("list") == 2


def test_a_short_pause_is_waited_for(
    provider: FakeRunpod, client: RunpodClient, clock: ManualClock
) -> None:
    provider.script("list", replace(TOO_MANY, headers={"Retry-After": "2"}))
    with pytest.raises(RateLimited):
        client.list_pods()
    before = clock.monotonic()

    client.list_pods()

    assert clock.monotonic() - before == pytest.approx(2, abs=0.1)


# The secret.


def test_the_key_is_in_no_text(
    provider: FakeRunpod, caplog: pytest.LogCaptureFixture, clock: ManualClock
) -> None:
    """Not in logs, not in errors and their tracebacks, not in what is printed."""
    canary = "rpa_CANARY0123456789"
    provider.key = canary
    key = ApiKey(canary)
    texts = [repr(key), str(key), f"{key}"]
    client = RunpodClient(key, rest=provider.rest, graphql=provider.graphql, clock=clock)
    texts += [repr(client), str(vars(client))]
    faults = (NO_CAPACITY, LOST_REPLY, GARBAGE, BROKEN, INVALID, Answer(401, "no"), None)
    with caplog.at_level(logging.DEBUG):
        for fault in faults:
            provider.script("create", fault)
            provider.script("list", *[fault] * 3)
            for call in (lambda: client.create(ORDER), client.list_pods):
                try:
                    texts.append(repr(call()))
                except ScfError as error:
                    texts += ["".join(traceback.format_exception(error)), repr(error)]
    client.close()

    assert caplog.records
    assert all(canary not in text for text in [*texts, caplog.text])
    assert canary not in repr(ORDER)


@pytest.mark.parametrize("text", ["", "a b", "a\nb", "schlüssel"])
def test_a_text_that_is_no_key_is_refused_without_saying_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        ApiKey(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://api.runpod.io/v2", "ftp://x", "api.runpod.io", "https://user:pw@x/v2"]
)
def test_the_key_is_sent_over_https_only(address: str) -> None:
    with pytest.raises(UsageError):
        RunpodClient(ApiKey("k"), rest=address)


def test_a_redirect_is_not_followed(provider: FakeRunpod, client: RunpodClient) -> None:
    provider.script("list", Answer(302, headers={"Location": "http://127.0.0.1:9/steal"}))
    with pytest.raises(RequestRefused):
        client.list_pods()


def test_an_order_needs_a_time_with_a_zone() -> None:
    with pytest.raises(UsageError, match="time zone"):
        replace(ORDER, terminate_after=datetime(2030, 1, 1))  # noqa: DTZ001

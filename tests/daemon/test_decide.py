"""Which door: the operator's order, minus what a door or a budget rules out, each with its reason."""

from hypothesis import given
from hypothesis import strategies as st

from scf.daemon.decide import Need, Offer, decide

HOUR = Need(seconds=3600.0)
LOCAL = Offer(door="local", power_w=100.0)
SSH = Offer(door="ssh", power_w=400.0, speed=4.0, bytes_per_s=1e8)
RUNPOD = Offer(door="runpod", usd_per_h=3.0, power_w=900.0, speed=20.0, bytes_per_s=2e7)
ALL = {offer.door: offer for offer in (LOCAL, SSH, RUNPOD)}


def chosen(*order: str, offers: dict[str, Offer] = ALL, need: Need = HOUR) -> str | None:
    return decide(order, offers, need).door


def test_the_first_of_the_order_that_fits_is_taken() -> None:
    assert chosen("ssh", "local") == "ssh"
    assert chosen("runpod", "ssh") == "runpod"
    assert decide(("ssh", "local"), ALL, HOUR).reason == (
        "ssh: free of charge, done within 15 min 00 s"
    )


def test_a_door_that_cannot_be_opened_is_passed_over_with_its_reason() -> None:
    offers = {**ALL, "ssh": Offer(door="ssh", fault="box is off")}

    decision = decide(("ssh", "local"), offers, HOUR)

    assert decision.door == "local"
    assert decision.reason.endswith("ssh not: box is off")


def test_money_time_and_work_rule_doors_out() -> None:
    """20 times faster at 3 USD an hour: 0.15 USD, 3 minutes, 162 kJ; here an hour and 360 kJ."""
    order = ("runpod", "local")
    assert chosen(*order, need=Need(seconds=3600.0, usd_max=0.14)) == "local"
    assert chosen(*order, need=Need(seconds=3600.0, usd_max=0.16)) == "runpod"
    assert chosen("local", "runpod", need=Need(seconds=3600.0, within_s=600.0)) == "runpod"
    assert chosen("local", "runpod", need=Need(seconds=3600.0, joules_max=2e5)) == "runpod"


def test_what_must_be_sent_counts() -> None:
    """1 TB at 20 MB/s is 14 hours of a rented machine."""
    need = Need(seconds=3600.0, data_bytes=10**12, usd_max=10.0)

    decision = decide(("runpod", "local"), ALL, need)

    assert decision.door == "local"
    assert "41.82 USD, the run has 10.00" in decision.reason


def test_a_busy_door_is_waited_for_only_where_no_other_fits() -> None:
    busy = Offer(door="ssh", busy_with="run-1-train-ebdm-1")
    assert chosen("ssh", "local", offers={**ALL, "ssh": busy}) == "local"
    decision = decide(("ssh",), {"ssh": busy}, HOUR)
    assert decision.door == "ssh"
    assert "busy with run-1-train-ebdm-1" in decision.reason


def test_this_machine_is_the_fallback_even_if_late_but_never_where_it_cannot_be_used() -> None:
    off = {**ALL, "runpod": Offer(door="runpod", fault="no API key")}
    urgent = Need(seconds=3600.0, within_s=60.0)
    late = decide(("runpod",), off, urgent)
    assert late.door == "local"
    assert late.reason.startswith("local: nothing else is left; runpod not: no API key; local not:")

    none = decide(("runpod",), {"runpod": off["runpod"]}, HOUR)
    assert (none.door, none.reason) == (None, "no door can take it; runpod not: no API key")
    assert decide((), {}, HOUR).door is None
    # Late is all that it may be: a budget holds for this machine, too.
    assert chosen("local", need=Need(seconds=3600.0, joules_max=1.0)) is None


def test_a_door_of_unknown_power_does_not_pass_a_limit_on_work() -> None:
    """Unknown is not zero."""
    offers = {"ssh": Offer(door="ssh"), "local": LOCAL}
    assert chosen("ssh", "local", offers=offers, need=Need(seconds=1.0, joules_max=1e3)) == "local"


@given(
    st.lists(st.sampled_from(["local", "ssh", "runpod", "moon"]), unique=True),
    st.sets(st.sampled_from(["local", "ssh", "runpod"])),
    st.floats(1.0, 1e6), st.floats(0.0, 10.0), st.integers(0, 10**13),
)  # fmt: skip
def test_the_same_question_has_the_same_answer_within_the_budget(
    order: list[str], there: set[str], seconds: float, usd_max: float, data_bytes: int
) -> None:
    need = Need(seconds=seconds, usd_max=usd_max or None, data_bytes=data_bytes)
    offers = {name: ALL[name] for name in there}
    decision = decide(order, offers, need)

    assert decision == decide(order, offers, need)
    assert decision.door is None or decision.door in offers
    for one in decision.weighed:
        if one.door == decision.door and usd_max:
            assert one.usd <= usd_max
    if "local" in there:
        assert decision.door is not None

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb_pgpool.frames import FrameError
from efm_lb_pgpool.node_info import LAYOUTS, PRIMARY, STANDBY, Backend, parse

# host port status [quarantine] [pg_status] weight [role] [pg_role] ..., as each release sends it
SAMPLES = {
    4: "h 5432 2 715827882.333333",
    5: "h 5432 2 715827882.333333 2",
    6: "h 5432 3 1 715827882.333333 3",
    7: "h 5432 2 715827882.333333 2 0 1795470276",
    8: "h 5432 3 1 715827882.333333 3 0 1795470276",
    9: "h 5432 2 715827882.333333 2 0 streaming async 1795470276",
    10: "h 5432 3 1 715827882.333333 3 0 streaming async 1795470276",
    11: "h 5432 2 up 715827882.333333 2 primary 0 streaming async 1795470276",
    12: "h 5432 3 1 down 715827882.333333 3 unknown 0 streaming async 1795470276",
    13: "h 5432 3 1 down 715827882.333333 3 unknown 1 0 streaming async 1795470276",
}


def test_there_is_a_sample_of_every_layout():
    assert SAMPLES.keys() == LAYOUTS.keys()
    assert all(len(names) == count == len(SAMPLES[count].split()) for count, names in LAYOUTS.items())


@pytest.mark.parametrize("count", LAYOUTS)
def test_reads_every_layout(count):
    backend = parse(1, SAMPLES[count].split())
    quarantined = "quarantine" in LAYOUTS[count]
    role = None if count == 4 else STANDBY if quarantined else PRIMARY
    assert backend == Backend(1, "h", 5432, 3 if quarantined else 2, role, quarantined, pytest.approx(1 / 3))


@pytest.mark.parametrize("count", [0, 1, 3, 14, 20])
def test_refuses_a_layout_of_no_release(count):
    with pytest.raises(FrameError, match=f"with {count} fields"):
        parse(0, ["1"] * count)


@pytest.mark.parametrize("values", ["h x 2 1.0 2", "h 5432 up 1.0 2", "h 5432 2 one 2", "h 5432 2 1.0 primary"])
def test_refuses_a_value_that_is_no_number(values):
    with pytest.raises(FrameError, match="no number"):
        parse(0, values.split())


@pytest.mark.parametrize("host", ["a\x1b[2Jb", "h" * 257])
def test_refuses_a_host_that_would_end_up_in_a_mail(host):
    with pytest.raises(FrameError, match="host"):
        parse(0, [host, "5432", "2", "1.0", "2"])


@pytest.mark.parametrize(
    ("status", "quarantined", "attached", "detached", "state"),
    [
        (0, False, False, True, "unused/standby"),
        (1, False, True, False, "waiting/standby"),
        (2, False, True, False, "up/standby"),
        (3, False, False, True, "down/standby"),
        (3, True, False, False, "quarantine/standby"),
        (7, False, False, False, "7/standby"),
    ],
)
def test_waiting_is_attached_and_a_quarantine_is_not_detached(status, quarantined, attached, detached, state):
    backend = Backend(0, "h", 5432, status, STANDBY, quarantined)
    assert (backend.attached, backend.detached, backend.state) == (attached, detached, state)


@given(st.lists(st.text(max_size=12) | st.integers().map(str) | st.floats().map(str), max_size=15))
def test_any_fields_are_a_backend_or_an_error(values):
    with contextlib.suppress(FrameError):
        assert parse(0, values).host == values[0]

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb_pgpool.frames import HEADER_SIZE, MAX_BODY, FrameError, body_length, encode, fields, notice


def test_encodes_type_length_and_body():
    assert encode(b"L") == b"L\0\0\0\4"
    assert encode(b"J", b"1 \0n") == bytes.fromhex("4a 00000008 31 20 00 6e")


def test_refuses_to_send_what_pgpool_would_not_accept():
    assert len(encode(b"R", b"x" * 255)) == 260
    with pytest.raises(ValueError, match="260 bytes"):
        encode(b"R", b"x" * 256)


@pytest.mark.parametrize(
    "header",
    [
        b"Z\0\0\0\4",  # not asked for
        b"l\0\0\0\3",  # shorter than its own length field
        b"l\0\0\0\0",
        b"l\xff\xff\xff\xff",
        b"l" + (MAX_BODY + 5).to_bytes(4, "big"),
        b"HTTP/",
        b"SSH-2",
    ],
)
def test_refuses_a_header_that_is_none(header):
    with pytest.raises(FrameError):
        body_length(header, b"lEN")


def test_accepts_the_longest_body():
    assert body_length(b"l" + (MAX_BODY + 4).to_bytes(4, "big"), b"l") == (b"l", MAX_BODY)


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE))
def test_a_header_never_announces_more_than_is_accepted(header):
    try:
        kind, length = body_length(header, b"lEN")
    except FrameError:
        return
    assert kind in (b"l", b"E", b"N")
    assert 0 <= length <= MAX_BODY


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", []),
        (b"\0", [""]),
        (b"a\0b\0", ["a", "b"]),
        (b"a\0b", ["a", "b"]),
        (b"a\0\0", ["a", ""]),
        (b"\xff\0", ["\ufffd"]),
    ],
)
def test_splits_fields(body, expected):
    assert fields(body) == expected


def test_reads_an_error():
    body = b"SERROR\0CXX000\0Minforming node info failed\0Dinvalid node ID : 9\0Fpcp_worker.c\0L845\0\0"
    error = notice(body)
    assert (error.severity, error.message, error.detail) == (
        "ERROR",
        "informing node info failed",
        "invalid node ID : 9",
    )
    assert str(error) == "informing node info failed: invalid node ID : 9"


@given(st.binary(max_size=2000))
def test_a_notice_is_always_one_short_printable_line(body):
    text = str(notice(body))
    assert text
    assert text.isprintable()
    assert len(text) < 600

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efm_lb import PermanentError
from efm_lb_pgpool.passfile import find, locate, password


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("10.0.0.1:9898:pcp:secret", "secret"),
        ("*:9898:pcp:secret", "secret"),
        ("*:*:*:secret", "secret"),
        ("10.0.0.1:*:pcp:", ""),
        # only a lone asterisk is a wild card
        ("10.0.0.*:9898:pcp:secret", None),
        ("**:9898:pcp:secret", None),
        # compared as text, as a whole
        ("10.0.0.10:9898:pcp:secret", None),
        ("10.0.0.1:98980:pcp:secret", None),
        ("10.0.0.1:9898:pc:secret", None),
        ("10.0.0.1 :9898:pcp:secret", None),
        ("# 10.0.0.1:9898:pcp:secret", None),
        ("", None),
        ("10.0.0.1:9898:pcp", None),
        # the password
        (r"10.0.0.1:9898:pcp:se\:cr\\et", r"se:cr\et"),
        ("10.0.0.1:9898:pcp:sec:ret", "sec"),
        (r"10.0.0.1:9898:pcp:secret" + "\\", "secret\\"),
        ("10.0.0.1:9898:pcp: secret ", " secret "),
        # an escaped character in a field is itself
        (r"10\.0.0.1:9898:pcp:secret", "secret"),
        (r"10.0.0.1\:9898:pcp:secret", None),
    ],
)
def test_a_line_fits_as_libpcp_has_it(line, expected):
    assert find(line, "10.0.0.1", "9898", "pcp") == expected


def test_colons_and_backslashes_in_fields_may_be_escaped():
    assert find(r"\:\:1:9898:a\\b:secret", "::1", "9898", r"a\b") == "secret"
    # libpcp compares before it looks for the end of the field, so that this fits too
    assert find("::1:9898:pcp:secret", "::1", "9898", "pcp") == "secret"


def test_the_first_line_that_fits_wins():
    assert find("*:*:other:no\n*:*:pcp:first\n*:*:pcp:second\n", "h", "9898", "pcp") == "first"


@given(st.text(), st.text(min_size=1), st.text(min_size=1))
def test_any_file_is_a_password_or_none(text, host, user):
    find(text, host, "9898", user)


@given(
    *(st.text(st.characters(blacklist_characters="\n\r\0", blacklist_categories=["Cs"]), min_size=1) for _ in range(3))
)
def test_what_is_escaped_is_found(host, user, secret):
    def escaped(text):
        return text.replace("\\", r"\\").replace(":", r"\:")

    line = f"{escaped(host)}:9898:{escaped(user)}:{escaped(secret)}\n"
    assert find(line, host, "9898", user) == secret


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pcppass"
    path.touch(mode=0o600)
    path.write_text("localhost:9898:pcp:tmp-secret\n/run/pgpool:9898:pcp:run-secret\n*:*:dos:secret\r\n")
    return path


def test_the_default_socket_directory_counts_as_localhost(file):
    assert password(str(file), "/tmp", 9898, "pcp") == "tmp-secret"
    assert password(str(file), "/run/pgpool", 9898, "pcp") == "run-secret"


def test_no_fitting_line_names_what_was_looked_for(file):
    with pytest.raises(PermanentError, match=f"{file} has no line for 127.0.0.1:9898:pcp"):
        password(str(file), "127.0.0.1", 9898, "pcp")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_may_read_is_refused_aloud(file, mode):
    file.chmod(mode)
    with pytest.raises(PermanentError, match=f"has mode {mode:04o}.*chmod 0600"):
        password(str(file), "/tmp", 9898, "pcp")


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_file_is_read(file, mode):
    file.chmod(mode)
    assert password(str(file), "/tmp", 9898, "pcp") == "tmp-secret"


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(PermanentError, match="not a regular file"):
            password(str(path), "h", 9898, "pcp")


@pytest.mark.parametrize("path", ["/nonexistent/pcppass", "with\0nul"])
def test_a_missing_file_is_named(path):
    with pytest.raises(PermanentError, match="cannot be read"):
        password(path, "h", 9898, "pcp")


def test_windows_line_ends_are_named_without_the_password(file):
    with pytest.raises(PermanentError, match="Windows line ends") as caught:
        password(str(file), "h", 9898, "dos")
    assert "secret" not in str(caught.value)


def test_where_the_file_is_looked_for():
    environment = {"PCPPASSFILE": "/env", "HOME": "/home/efm"}
    assert locate("/setting", environment) == "/setting"
    assert locate(None, environment) == "/env"
    assert locate(None, {"HOME": "/home/efm"}) == "/home/efm/.pcppass"
    with pytest.raises(PermanentError, match="PASSFILE"):
        locate(None, {})

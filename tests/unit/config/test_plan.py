"""The compiled plan is trusted only while nothing it was made from has changed."""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efm_lb import compiled
from efm_lb.compiled import Stale
from efm_lb.config import load
from efm_lb.configuration import Configuration
from efm_lb.errors import SettingsError
from efm_lb.settings import settings_of
from efm_lb.sources import gather
from unit.config.fakes import ADAPTER, MINIMAL, Install

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
BANNED = [
    "asyncio",
    "importlib.metadata",
    "jsonschema",
    "logging",
    "pydantic",
    "pydantic_settings",
    "dotenv",
    "rich",
    "subprocess",
    "typer",
]


class Place:
    """A cluster's env file and plan."""

    def __init__(self, env_file: Path, plan: Path, info: Path, module: Path) -> None:
        self.env_file = env_file
        self.plan = plan
        self.info = info
        self.module = module
        self.environ: dict[str, str] = {}

    def load(self, cluster: str = "efm") -> Configuration | Stale:
        return compiled.load(gather(cluster, str(self.env_file), self.environ))

    def settings(self) -> tuple[Configuration, str]:
        return settings_of("efm", str(self.env_file), self.environ)

    def stale(self) -> str:
        """Why the plan is not trusted; and the slow way must have the last word."""
        plan = self.load()
        assert isinstance(plan, Stale)
        return plan.reason


@pytest.fixture
def place(tmp_path: Path, env_file: Path, install: Install) -> Place:
    """A compiled plan that is fresh."""
    info = install("acme-fake", {"fake": "acme_fake"}, acme_fake=ADAPTER)
    state = tmp_path / "state"
    state.mkdir()
    env_file.write_text(
        f"{MINIMAL}EFM_LB_STATE_DIR={state}\nEFM_LB_PROBE__PASSFILE=/x\nEFM_LB_BALANCERS__POOL1__WRITE=app,edb\n"
        "EFM_LB_BALANCERS__POOL1__RATIO=0.1\n"
    )
    place = Place(env_file, state / "efm.plan", info, info.parent / "acme_fake.py")
    assert place.settings()[1] == f"{place.plan}: there is none yet"
    assert place.settings()[1] == ""
    return place


def test_it_holds_what_was_validated(place: Place) -> None:
    assert place.load() == load("efm", str(place.env_file), {})


def test_it_is_private(place: Place) -> None:
    assert place.plan.stat().st_mode & 0o777 == 0o600
    assert os.listdir(place.plan.parent) == ["efm.plan"]


def test_one_byte_of_the_env_file(place: Place) -> None:
    status = place.env_file.stat()
    with place.env_file.open("r+b") as file:  # in place: the same inode
        content = file.read().replace(b"10.0.0.9", b"10.0.0.8")
        file.seek(0)
        file.write(content)
    os.utime(place.env_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = place.env_file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (status.st_size, status.st_mtime_ns, status.st_ino)
    assert place.stale() == f"{place.env_file} has changed"
    configuration, reason = place.settings()
    assert configuration.balancers[0].settings["host"] == "10.0.0.8"
    assert reason == f"{place.env_file} has changed"
    assert place.settings() == (configuration, "")


def test_a_touched_env_file(place: Place) -> None:
    os.utime(place.env_file)
    assert place.stale() == f"{place.env_file} has changed"


def test_a_removed_env_file(place: Place) -> None:
    place.env_file.unlink()
    with pytest.raises(SettingsError, match="no such file"):
        place.settings()


def test_another_env_file_of_the_same_content(place: Place) -> None:
    other = place.env_file.with_name("other.env")
    other.write_bytes(place.env_file.read_bytes())
    plan = compiled.load(gather("efm", str(other), {}))
    assert isinstance(plan, Stale)
    assert plan.reason == f"{place.plan}: of env file {place.env_file}"


@AS_ROOT
def test_an_env_file_that_was_given_away(place: Place) -> None:
    os.chown(place.env_file, 12345, -1)
    place.settings()  # root reads what EFM's user owns, in a directory that only root changes
    os.chown(place.env_file.parent, 12345, -1)
    with pytest.raises(SettingsError, match="owned by uid 12345"):
        place.settings()


@AS_ROOT
def test_a_plan_of_somebody_else(place: Place) -> None:
    os.chown(place.plan, 12345, -1)
    assert place.stale() == f"{place.plan}: owned by uid 12345"


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_plan_that_others_may_write(place: Place, mode: int) -> None:
    place.plan.chmod(mode)
    assert place.stale() == f"{place.plan}: writable by others"


def test_a_link(place: Place) -> None:
    place.plan.rename(place.plan.with_name("real"))
    place.plan.symlink_to("real")
    assert place.stale().startswith(f"{place.plan}: Too many levels of symbolic links")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_not_a_file(place: Place, make: Callable[[Path], None]) -> None:
    place.plan.unlink()
    make(place.plan)
    assert place.stale() == f"{place.plan}: not a regular file"
    assert place.settings()[0].cluster == "efm"


def test_another_cluster(place: Place) -> None:
    place.plan.rename(place.plan.with_name("acctg.plan"))
    plan = place.load("acctg")
    assert isinstance(plan, Stale)
    assert plan.reason.endswith("acctg.plan: of cluster efm")


@pytest.mark.parametrize("environ", [{"EFM_LB_DEADLINE": "8"}, {"EFM_LB_NONSENSE": ""}])
def test_another_environment(place: Place, environ: dict[str, str]) -> None:
    place.environ = environ
    assert place.stale() == "the environment is another one"


def test_the_rest_of_the_environment_does_not_matter(place: Place) -> None:
    place.environ = {"HOME": "/", "EFM_LB_ENV_FILE": "/ignored"}
    assert isinstance(place.load(), Configuration)


def test_a_removed_variable(place: Place) -> None:
    place.environ = {"EFM_LB_DEADLINE": "8"}
    assert place.settings()[0].deadline == 8
    place.environ = {}
    assert place.settings()[0].deadline == 10


@pytest.mark.parametrize("part", ["efm_lb", "python", "marshal", "format"])
def test_another_version(place: Place, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    magic, versions, _ = compiled._HEADER.decode().split("\n")
    ours, python, marshalled = versions.split()
    assert (ours, python, marshalled) == (compiled.__version__, f"{sys.hexversion:x}", str(marshal.version))
    other = {
        "efm_lb": f"{magic}\n9.9 {python} {marshalled}\n",
        "python": f"{magic}\n{ours} {sys.hexversion + 1:x} {marshalled}\n",
        "marshal": f"{magic}\n{ours} {python} 99\n",
        "format": f"efm-lb plan 99\n{versions}\n",
    }
    monkeypatch.setattr(compiled, "_HEADER", other[part].encode())
    assert place.stale() == f"{place.plan}: of another version of efm-lb or Python"


def test_an_installation(place: Place, install: Install) -> None:
    install("zeta-fake", {"fake": "acme_fake"})
    assert place.stale() == f"installed software has changed: {place.info.parent}"
    with pytest.raises(SettingsError, match="both bring an adapter fake"):
        place.settings()


def test_a_removal(place: Place) -> None:
    for path in place.info.iterdir():
        path.unlink()
    place.info.rmdir()
    with pytest.raises(SettingsError, match="no adapter 'fake'"):
        place.settings()


def test_another_path(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = tmp_path / "extra"
    extra.mkdir()
    monkeypatch.syspath_prepend(str(extra))
    assert place.stale() == f"installed software has changed: {extra}"
    assert place.settings()[0].cluster == "efm"
    assert place.settings()[1] == ""
    monkeypatch.setattr(sys, "path", sys.path[1:])
    assert place.stale() == "installed software has changed: sys.path"


@pytest.mark.parametrize("what", ["module", "entry points", "dist-info"])
def test_a_changed_adapter(place: Place, what: str) -> None:
    path = {"module": place.module, "entry points": place.info / "entry_points.txt", "dist-info": place.info}[what]
    os.utime(path, ns=(0, 1))
    assert place.stale() == f"installed software has changed: {path}"


def test_truncated_at_every_byte(place: Place) -> None:
    content = place.plan.read_bytes()
    for length in range(len(content)):
        place.plan.write_bytes(content[:length])
        assert place.stale().startswith(f"{place.plan}: ")
    place.plan.write_bytes(content + b"\0")
    assert place.stale() == f"{place.plan}: damaged"
    place.plan.write_bytes(content)
    assert isinstance(place.load(), Configuration)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500, deadline=None)
@given(data=st.data())
def test_any_flipped_bit(place: Place, data: st.DataObject) -> None:
    content = place.plan.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    try:
        place.plan.write_bytes(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :])
        assert place.stale().startswith(f"{place.plan}: ")
    finally:
        place.plan.write_bytes(content)


@pytest.mark.parametrize("value", [None, (), (1, 2, 3), ((), (), ()), [{}] * 3])
def test_a_whole_plan_of_something_else(place: Place, value: object) -> None:
    payload = marshal.dumps(value)
    place.plan.write_bytes(compiled._HEADER + compiled._checks(payload) + payload)
    assert place.stale().startswith(f"{place.plan}: ")


class TestStoring:
    def test_a_missing_directory_is_only_reported(self, place: Place) -> None:
        place.plan.unlink()
        place.plan.parent.rmdir()
        configuration, reason = place.settings()
        assert configuration.cluster == "efm"
        assert reason.startswith(f"{place.plan}: there is none yet; no plan could be stored: {place.plan}.")
        assert reason.endswith(": No such file or directory")

    def test_a_full_disk_leaves_the_old_plan_and_no_litter(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        before = place.plan.read_bytes()
        os.utime(place.env_file)

        def full(descriptor: int, content: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        assert place.settings()[1].endswith(f"no plan could be stored: {place.plan.parent}: No space left on device")
        assert place.plan.read_bytes() == before
        assert os.listdir(place.plan.parent) == ["efm.plan"]

    def test_what_a_killed_process_left_is_in_nobodys_way(self, place: Place) -> None:
        place.plan.unlink()
        left = Path(f"{place.plan}.{os.getpid()}.efm-lb")
        left.write_bytes(b"half")
        place.settings()
        assert not left.exists()
        assert place.settings()[1] == ""

    @AS_ROOT
    def test_roots_plan_is_for_the_directorys_owner(self, place: Place) -> None:
        os.chown(place.plan.parent, 12345, 12345)
        place.plan.unlink()
        place.settings()
        assert (place.plan.stat().st_uid, place.plan.stat().st_gid) == (12345, 12345)

    def test_settings_that_nobody_validated_are_not_compiled(self, place: Place) -> None:
        place.module.write_text("raise SystemExit(3)")
        sys.modules.pop("acme_fake")
        for _ in range(2):
            configuration, reason = place.settings()
            assert reason.endswith("; adapter fake: SystemExit: 3")
            assert [source.name for source in configuration.adapters] == ["fake"]

    @pytest.mark.parametrize("written", ["{}", "'{}'", '"{}"  # here', "{} # here"])
    def test_the_directory_is_found_before_parsing(self, place: Place, written: str) -> None:
        state = place.plan.parent
        content = place.env_file.read_text()
        line = f"export EFM_LB_STATE_DIR={written.format(state)}"
        place.env_file.write_text(content.replace(f"EFM_LB_STATE_DIR={state}", line))
        assert gather("efm", str(place.env_file), {}).plan == str(place.plan)
        place.settings()
        assert place.settings()[1] == ""

    def test_the_environments_directory_comes_first(self, place: Place, tmp_path: Path) -> None:
        place.environ = {"EFM_LB_STATE_DIR": str(tmp_path)}
        place.settings()
        assert (tmp_path / "efm.plan").exists()
        assert place.settings()[1] == ""


def test_a_disk_that_hangs_keeps_nobody_waiting(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    os.utime(place.env_file)
    monkeypatch.setattr(compiled, "store", lambda *_: released.wait(60))
    try:
        _, reason = place.settings()
    finally:
        released.set()
    assert reason.endswith(f"no plan could be stored: {place.plan.parent}: the disk has not taken it in time")


def test_a_fresh_plan_is_loaded_by_light_modules_alone(place: Place) -> None:
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(place.info.parent)!r})\n"
        "from efm_lb.settings import settings_of\n"
        "from efm_lb.registry import register\n"
        f"configuration, reason = settings_of('efm', {str(place.env_file)!r}, {{}})\n"
        "plugins, failures = register(configuration.adapters)\n"
        "assert plugins.has_plugin('fake') and not failures, failures\n"
        f"print(reason, *(set(sys.modules) & set({BANNED!r})), sep='\\n')\n"
    )

    def run() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-I", "-B", "-c", script], capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.split("\n")[:-1]

    slow = run()
    assert slow[0].startswith("installed software has changed")
    assert {"pydantic", "jsonschema"} < set(slow)
    assert run() == [""]

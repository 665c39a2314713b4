"""Checks of plugins in separate processes: those that exit, hang or print, and cleanup."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fcn_jax.plugins import isolation
from tests.helpers.installing import GOOD, Site


def check(entry, timeout=60.0):
    return isolation.check_all([entry], timeout)[entry]


def test_checks_each_plugin_in_a_separate_process(site):
    site.module("good_net", GOOD)
    site.module("chatty_net", "print('hello')\n" + textwrap.dedent(GOOD))
    site.module("broken_net", "import this_is_not_installed_anywhere")
    site.module("fatal_net", "import os; os._exit(7)")
    values = {"net": "good_net:NET", "broken": "broken_net:NET", "fatal": "fatal_net:NET"}
    site.distribution("nets", "1", backbones=values)
    site.distribution("other", "1", backbones={"net": "chatty_net:NET"})
    reasons = isolation.check_all(site.registry().entries())
    by_name = {entry.full_name: reason for entry, reason in reasons.items()}
    assert by_name["nets:net"] is None
    assert by_name["other:net"] is None
    assert "No module named 'this_is_not_installed_anywhere'" in by_name["nets:broken"]
    assert by_name["nets:fatal"] == "the import ended the process with status 7"
    assert "good_net" not in sys.modules


def test_plugins_of_one_module_are_imported_together_and_end_separately(site, tmp_path):
    site.module(
        "counted_net",
        f"open({str(tmp_path / 'count')!r}, 'a').write('x')\n"
        + textwrap.dedent(GOOD)
        + "\nOTHER = 3",
    )
    site.module(
        "deadly_net",
        textwrap.dedent(GOOD)
        + textwrap.dedent("""
            def __getattr__(name):
                import os

                os._exit(5)
        """),
    )
    site.distribution(
        "nets", "1", backbones={"net": "counted_net:NET", "other": "counted_net:OTHER"}
    )
    site.distribution(
        "others", "1", backbones={"net": "deadly_net:NET", "deadly": "deadly_net:ABSENT"}
    )
    reasons = {
        entry.full_name: reason
        for entry, reason in isolation.check_all(site.registry().entries()).items()
    }
    assert reasons["nets:net"] is None
    assert "is a int" in reasons["nets:other"]
    assert (tmp_path / "count").read_text() == "x"
    assert reasons["others:net"] is None
    assert reasons["others:deadly"] == "the import ended the process with status 5"


def test_stops_a_plugin_that_hangs(site):
    site.module("slow_net", "import time; time.sleep(600)")
    site.distribution("nets", "1", backbones={"net": "slow_net:NET"})
    assert check(site.registry().entries()[0], timeout=1.5) == "timed out after 1.5 s at import"


def test_waits_once_for_a_module_that_hangs(site, tmp_path):
    site.module(
        "slow_net",
        f"import time; open({str(tmp_path / 'count')!r}, 'a').write('x'); time.sleep(600)",
    )
    names = [f"net{i}" for i in range(4)]
    site.distribution("nets", "1", backbones={name: f"slow_net:{name}" for name in names})
    reasons = isolation.check_all(site.registry().entries(), timeout=2)
    assert [entry.name for entry in reasons] == names
    assert set(reasons.values()) == {"timed out after 2 s at import"}
    assert (tmp_path / "count").read_text() == "x"


def test_accepts_a_plugin_that_leaves_threads_or_exit_handlers(site):
    threads = "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()\n"
    handler = "import atexit, time; atexit.register(time.sleep, 600)\n"
    site.module("threaded_net", threads + textwrap.dedent(GOOD))
    site.module("handling_net", handler + textwrap.dedent(GOOD))
    site.distribution("nets", "1", backbones={"net": "threaded_net:NET"})
    site.distribution("others", "1", backbones={"net": "handling_net:NET"})
    assert set(isolation.check_all(site.registry().entries(), timeout=20).values()) == {None}


def test_child_has_the_current_folder_on_its_path_if_the_parent_has(site, tmp_path, monkeypatch):
    here = Site(tmp_path / "here")
    here.folder.mkdir()
    here.module("local_net", GOOD)
    site.distribution("nets", "1", backbones={"net": "local_net:NET"})
    monkeypatch.chdir(here.folder)
    (entry,) = site.registry().entries()
    assert "No module named 'local_net'" in check(entry)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert check(entry) is None


def is_running(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "timeout"), [(signal.SIGINT, 500), (signal.SIGTERM, 5), (signal.SIGKILL, 5)]
)
def test_interrupted_check_leaves_no_process(site, tmp_path, number, timeout):
    """SIGINT ends the children at once; if the parent is killed, they end at the timeout."""
    site.module(
        "slow_net",
        f"""
        import os, pathlib, time
        pathlib.Path({str(tmp_path)!r}, f"{{os.getpid()}}.pid").touch()
        time.sleep(600)
        """,
    )
    site.distribution("nets", "1", backbones={"net": "slow_net:NET", "net2": "slow_net:NET"})
    site.distribution("others", "1", backbones={"net": "slow_net:NET"})
    # Started in the background of a shell, the tests would hand on that SIGINT is ignored.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from fcn_jax.plugins import isolation, registry; "
        f"isolation.check_all(registry.default().entries(), timeout={timeout})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL
    ) as parent:
        wait_until(lambda: list(tmp_path.glob("*.pid")))
        parent.send_signal(number)
        parent.wait(20)
    assert parent.returncode != 0
    wait_until(lambda: not any(is_running(path.stem) for path in tmp_path.glob("*.pid")))


def test_kills_processes_that_a_plugin_started(site, tmp_path):
    site.module(
        "forking_net",
        f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        time.sleep(600)
        """,
    )
    site.distribution("nets", "1", backbones={"net": "forking_net:NET"})
    assert check(site.registry().entries()[0], timeout=3) == "timed out after 3 s at import"
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(pid))


def test_ignores_the_output_of_a_plugin(site):
    rubbish = (
        'print(\'{\\"reason\\": \\"no\\"}\' * 1000); import sys; '
        "sys.stdout.buffer.write(bytes(range(256)) * 999)\n"
    )
    site.module("loud_net", rubbish + textwrap.dedent(GOOD))
    site.module(
        "dying_net",
        "import os, sys; sys.stderr.write('a word on why\\n'); sys.stderr.flush(); "
        "os.kill(os.getpid(), 9)",
    )
    site.distribution("nets", "1", backbones={"net": "loud_net:NET", "dying": "dying_net:NET"})
    reasons = {
        entry.name: reason
        for entry, reason in isolation.check_all(site.registry().entries()).items()
    }
    assert reasons == {
        "net": None,
        "dying": "the import ended the process by SIGKILL: a word on why",
    }

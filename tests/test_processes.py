"""What is asked of the operating system, which is not always Linux."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from processes import is_running, peak_kib


def test_peak_memory_is_in_kib_where_the_system_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(who: int) -> resource.struct_rusage:
        return resource.struct_rusage((0.0, 0.0, 3 << 20, *[0] * 13))

    monkeypatch.setattr(resource, "getrusage", usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_kib() == 3 << 10
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_kib() == 3 << 20


def test_a_process_is_known_to_run_without_proc() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert (is_running(os.getpid()), is_running(1), is_running(ended.pid)) == (True, True, False)

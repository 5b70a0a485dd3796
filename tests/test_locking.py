"""Two processes take turns, and the one that waits says so."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from accel.locking import held


def test_a_second_process_waits_says_what_for_and_then_goes_on(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from accel.locking import held
        with held(Path(sys.argv[1]), "the export"):
            print("entered")
        """
    )
    lock = tmp_path / "x.lock"
    with held(lock, "the export"):
        second = subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        assert "waiting for another process to finish the export" in second.stderr.readline()
        assert second.poll() is None
    out, _ = second.communicate(timeout=30)
    assert out == "entered\n"


def test_the_lock_is_free_again_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), held(tmp_path / "x.lock", "x"):
        raise ValueError("broken")
    with held(tmp_path / "x.lock", "x"):
        pass

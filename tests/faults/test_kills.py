"""kill -9 of whole runs at 30 random moments; ``make bench-faults`` does it a thousand times."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_never_been(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kills.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, str(script), "--kills", "30", "--seed", "0", "--folder", str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, timeout=800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 30 and found["runs"] >= 1
    assert max(map(int, found["steps_lost"])) <= found["checkpoint_every_steps"]

"""The scripts of ``examples/``: their syntax, the fields a cluster needs, and what they do when a call ends in each way."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from reference.untrained_runs import small_config, write_run

from bridle.cli import main
from bridle.train.checkpoint import latest_checkpoint

EXAMPLES = Path(__file__).parents[1] / "examples"
SLURM = EXAMPLES / "slurm.sbatch"
SERVICE, JOB = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text(encoding="utf-8"))
POD = JOB["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SECONDS = 240

# What stands for the cluster. The launcher makes a checkpoint, finishes the run, or neither, as the test says.
SRUN = """#!/bin/bash
echo "${0##*/} $*" >> "$LOG"
mkdir -p "$RUN/checkpoints"
[ -n "$CHECKPOINT" ] && echo "$CHECKPOINT" > "$RUN/checkpoints/latest"
[ -n "$FINISHES" ] && touch "$RUN/finished"
exit $STATUS
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$LOG"
echo 127.0.0.1
"""
BRIDLE = """#!/bin/bash
[ "$1 $3" = "inspect --json" ] || exit 2
[ -d "$2" ] || exit 1
[ -e "$2/finished" ] && answer=true || answer=false
echo "{\\"finished\\": $answer}" > "$4"
"""


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def command(cluster: str, *settings: str) -> list[str]:
    if cluster == "slurm":
        return ["bash", str(SLURM), *settings]
    return [*CONTAINER["command"], *CONTAINER["args"]]


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """Environment of a script whose cluster is made of the programs above."""
    for name, text in {"srun": SRUN, "torchrun": SRUN, "scontrol": SCONTROL, "bridle": BRIDLE}.items():
        program(tmp_path, name, text)
    program(tmp_path, "python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "log"),
        "RUN": str(tmp_path / "run"),
        "DATA": "recordings",
        "RECIPE": "audio-debug",
        "CHECKPOINT": "",
        "FINISHES": "",
        "PODS": "1",
        "PROCESSES": "2",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NNODES": "1",
    }


@pytest.mark.parametrize("cluster", ["slurm", "kubernetes"])
@pytest.mark.parametrize(
    ("before", "checkpoint", "finishes", "status", "ends"),
    [
        ("", "step-00000040", "yes", 0, "done"),
        ("step-00000020", "step-00000040", "yes", 1, "done"),  # a signal that came at the end
        ("", "step-00000020", "", 0, "again"),
        ("step-00000020", "step-00000030", "", 1, "again"),
        ("step-00000020", "", "", 1, "failed"),
        ("", "", "", 1, "failed"),
    ],
)
def test_a_script_goes_on_while_there_is_something_to_do(
    cluster: str, before: str, checkpoint: str, finishes: str, status: int, ends: str, place: dict[str, str]
) -> None:
    if before:
        (Path(place["RUN"]) / "checkpoints").mkdir(parents=True)
        (Path(place["RUN"]) / "checkpoints" / "latest").write_text(f"{before}\n")
    environment = {**place, "CHECKPOINT": checkpoint, "FINISHES": finishes, "STATUS": str(status)}
    result = subprocess.run(
        command(cluster, "--seed", "3"), env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    log = Path(place["LOG"]).read_text()
    assert f"-m bridle pretrain audio-debug --data recordings --out {place['RUN']} --resume" in log
    if cluster == "slurm":
        assert result.returncode == (1 if ends == "failed" else 0)
        assert (f"scontrol requeue {os.getpid()}" in log) == (ends == "again")
        assert "--resume --seed 3\n" in log
    else:
        assert result.returncode == {"done": 0, "again": 75, "failed": 1}[ends]


def test_inspect_says_what_the_scripts_ask(tmp_path: Path) -> None:
    for steps, finished in ((1, False), (3, True)):
        run = write_run(tmp_path / str(steps), small_config("audio", "cold:3steps"), steps=(steps, 3))
        assert main(["inspect", str(run), "--json", str(tmp_path / "run.json")]) == 0
        assert json.loads((tmp_path / "run.json").read_text())["finished"] is finished


def test_the_slurm_script_is_signalled_in_time() -> None:
    assert subprocess.run(["bash", "-n", str(SLURM)], check=False).returncode == 0
    text = SLURM.read_text(encoding="utf-8")
    options = {
        line.split()[1].split("=")[0]: line.split()[1].partition("=")[2] for line in text.splitlines() if "#SBATCH" in line
    }
    assert options["--ntasks-per-node"] == "1"  # torchrun starts the others
    assert "--requeue" in options and options["--open-mode"] == "append"
    name, _, seconds = options["--signal"].partition("@")
    assert name == "USR1" and "SIGUSR1" in text.split("--signals-to-handle ")[1].split()[0]
    assert int(text.split("TORCH_ELASTIC_SHUTDOWN_TIMEOUT=")[1].split()[0]) < int(seconds)
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in text


def test_the_slurm_script_names_what_is_missing() -> None:
    result = subprocess.run(["bash", str(SLURM)], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert result.returncode != 0 and "DATA: the recordings" in result.stderr


def test_the_job_gives_pods_names_time_and_another_try() -> None:
    job = JOB["spec"]
    assert (JOB["kind"], job["completionMode"], SERVICE["kind"]) == ("Job", "Indexed", "Service")
    environment: dict[str, Any] = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    assert job["completions"] == job["parallelism"] == int(environment["PODS"])
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["selector"] == {"job-name": JOB["metadata"]["name"]}
    script = CONTAINER["args"][0]
    assert f"{JOB['metadata']['name']}-0.{POD['subdomain']}:" in script
    assert POD["subdomain"] == SERVICE["metadata"]["name"]
    assert POD["restartPolicy"] == "Never"  # what podFailurePolicy demands
    conditions, codes = job["podFailurePolicy"]["rules"]
    assert conditions["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert codes["onExitCodes"] == {"containerName": CONTAINER["name"], "operator": "In", "values": [75]}
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < POD["terminationGracePeriodSeconds"]
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    mounted = {mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert mounted == {volume["name"] for volume in POD["volumes"]}
    assert subprocess.run(["bash", "-n", "-c", script], check=False).returncode == 0


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["slurm", "kubernetes"])
def test_a_real_run_is_stopped_and_finished_by_the_next_call(
    cluster: str, place: dict[str, str], tone_folder: Path, tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    """Two processes of a real torchrun; the signal goes where the cluster sends it."""
    binaries = Path(sys.executable).parent
    for name in ("bridle", "torchrun", "python"):
        program(tmp_path, name, f'#!/bin/bash\nexec {binaries / name} "$@"\n')
    program(tmp_path, "srun", '#!/bin/bash\nexec "$@"\n')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ["--phases", "cold:60steps", "--train.checkpoint-every-steps", "5", "--train.log-every-steps", "2"]
    call = command(cluster, *settings)
    call[-1] = call[-1].replace("--resume", " ".join(["--resume", *settings])) if cluster == "kubernetes" else call[-1]
    environment = {
        **os.environ,
        **place,
        "DATA": str(tone_folder),
        "OMP_NUM_THREADS": "1",
        "RENDEZVOUS": f"127.0.0.1:{port}",
        "SLURM_JOB_ID": str(port),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    for number in (1, 2):
        process = subprocess.Popen(
            call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        started.append(process)
        if number == 1:
            deadline = time.monotonic() + SECONDS
            while not (Path(place["RUN"]) / "checkpoints" / "latest").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            if cluster == "kubernetes":
                process.send_signal(signal.SIGTERM)
            else:
                (torchrun,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                os.kill(int(torchrun), signal.SIGUSR1)
        said, _ = process.communicate(timeout=SECONDS)
        if cluster == "kubernetes":
            assert process.returncode == (75 if number == 1 else 0), said
        else:
            assert process.returncode == 0, said
            assert ("goes back into the queue" if number == 1 else "done: ") in said
            assert ("requeue" in Path(place["LOG"]).read_text()) or number == 2
        assert ("a checkpoint is written" if number == 1 else "resuming after step") in said
    path = latest_checkpoint(Path(place["RUN"]))
    assert path is not None and path.name.endswith("60")

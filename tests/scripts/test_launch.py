"""The files of scripts/launch: linted, and run with stand-ins for the commands of a cluster."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helpers.runs import (
    AFFINE,
    OWN_PARTS,
    PATIENCE,
    ROOT,
    TINY,
    all_cores,
    environment,
    free_port,
    start_together,
    wait_until,
)

LAUNCH = ROOT / "scripts" / "launch"
SRUN = """#!/usr/bin/env bash
shift  # --kill-on-bad-exit=0
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
done
status=0
for task in $(jobs -p); do
  wait "$task" || status=$?
done
exit $status
"""
GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$HOME/gcloud"
command=${!#}
cd "$HOME" && bash -c "${command#--command=}"
"""
# Other tests may run on this machine: stop only the processes of this worker.
PKILL = """#!/usr/bin/env bash
for process in $(pgrep "${@:2}"); do
  if tr '\\0' '\\n' < "/proc/$process/environ" | grep -qx "HOME=$HOME"; then kill "$1" "$process"; fi
done
"""
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$HOME/arguments.new" && mv "$HOME/arguments.new" "$HOME/arguments"
echo running
trap 'echo saved >> "$HOME/diffusion_distillation/run.log"; exit' TERM
while :; do sleep 0.1; done
"""


def stand_in(folder, name, text):
    """Write a program that the scripts find in place of the real one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def shellcheck(*arguments, **kwargs):
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), *arguments], capture_output=True, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("**/*.sh")), ids=lambda path: path.name)
def test_shell_scripts_pass_shellcheck(script):
    shellcheck(script)


def test_slurm_gets_one_task_per_gpu():
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert re.fullmatch(r"TERM@\d+", asked["signal"]) and re.fullmatch(r"1-\d+%1", asked["array"])


@pytest.mark.slow
def test_slurm_tasks_train_as_one_run(tmp_path):
    """JAX connects the two tasks by the variables of SLURM alone."""
    stand_in(tmp_path / "bin", "srun", SRUN)
    env = OWN_PARTS | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(_job_with_a_free_port()),
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NODELIST": "localhost",
    }
    flags = ["--config=configs/digits_base.py", "--config.train.num_train_steps=5", "--config.train.eval_every_steps=0"]
    flags += [*TINY, *AFFINE, f"--workdir={tmp_path / 'a run'}"]
    command = [LAUNCH / "slurm.sh", "scripts/train.py", *flags]
    env = environment(1, env)
    with all_cores():
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 cpu devices" in done.stdout and done.stdout.count("step 5/5") == 1
    assert (tmp_path / "a run" / "checkpoints" / "5").is_dir()


def _job_with_a_free_port():
    """JAX derives the coordinator's port from the number of the job."""
    for job in range(4096):
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", 61440 + job)):
                return job
    raise AssertionError("no port is free")


def test_a_run_is_started_and_stopped_on_tpu_vms(tmp_path):
    home, repository = tmp_path / "home", tmp_path / "home" / "diffusion_distillation"
    stand_in(tmp_path / "bin", "gcloud", GCLOUD)
    stand_in(tmp_path / "bin", "pkill", PKILL)
    stand_in(repository / ".venv" / "bin", "python", PYTHON)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "HOME": str(home), "TPU": "my-pod", "ZONE": "here"}

    def call(*arguments):
        done = subprocess.run([LAUNCH / "tpu_vm.sh", *arguments], env=env, capture_output=True, text=True, timeout=60)
        called = (home / "gcloud").read_text()
        assert called.startswith("compute\ntpus\ntpu-vm\nssh\nmy-pod\n--zone=here\n--worker=")
        shellcheck("--shell=bash", "-", input=called.split("--command=")[1])
        return done

    def wait_for(path, text):
        wait_until(lambda: path.exists() and text in path.read_text())

    flags = ["scripts/train.py", "--config=configs/digits_base.py", "--workdir=/mnt/my runs/$1", "--config.seed='3'"]
    assert call("start", *flags).returncode == 0
    wait_for(home / "arguments", "seed")
    assert (home / "arguments").read_text().splitlines() == flags
    assert call("stop").returncode == 0
    wait_for(repository / "run.log", "saved")
    assert "running" in (repository / "run.log").read_text()
    shutil.rmtree(repository)
    assert "does not exist" in call("setup", f"{tmp_path}/no such repository").stderr
    wrong = subprocess.run([LAUNCH / "tpu_vm.sh", "begin"], env=env, capture_output=True, text=True)
    assert wrong.returncode == 2 and "usage" in wrong.stderr


def read_jobset():
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    [workers] = jobset["spec"]["replicatedJobs"]
    return jobset, workers, workers["template"]["spec"]


def test_the_jobset_fits_its_schema_and_names_itself_consistently():
    jobset, workers, job = read_jobset()
    jsonschema.validate(jobset, json.loads((ROOT / "tests" / "jobset.schema.json").read_text()))
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": workers["name"]}, "spec": job}
    kubernetes_validate.validate(whole, "1.31", strict=True)
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    address = next(variable["value"] for variable in container["env"] if variable["name"] == "COORDINATOR")
    name = jobset["metadata"]["name"]
    assert address.split(":")[0] == f"{name}-{workers['name']}-0-0.{name}"
    assert job["parallelism"] == job["completions"] and f"--num_processes={job['parallelism']}" in container["args"]


@pytest.mark.slow
def test_the_pods_of_the_jobset_train_as_one_run(tmp_path):
    """Each pod is a process on this machine, with the arguments that Kubernetes would pass and a smaller model."""
    _, _, job = read_jobset()
    [container] = job["template"]["spec"]["containers"]
    coordinator = f"localhost:{free_port()}"
    pods = []
    for index in range(job["completions"]):
        rendered = [
            argument.replace("$(COORDINATOR)", coordinator)
            .replace("$(PROCESS_ID)", str(index))
            .replace("/shared", str(tmp_path))
            for argument in container["args"]
        ]
        assert not any("$(" in argument for argument in rendered)
        smaller = [*TINY, *AFFINE, "--config.train.num_train_steps=5"]
        pods += start_together([[sys.executable, *rendered, *smaller]], env=OWN_PARTS)
    assert [pod.wait(timeout=PATIENCE) for pod in pods] == [0, 0]
    assert list(tmp_path.glob("runs/digits/base/checkpoints/5"))

"""A real SLURM of one node, started for a test session from Debian's packages; no accounting, no cgroups."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SYSTEM = Path("/etc/slurm/slurm.conf")
"""Where jobs look for it: `srun` inside a job of Snakemake's does not see the environment of the submission."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
MUNGE_FILES = {
    "key-file": "key",
    "socket": "munge.socket",
    "pid-file": "munged.pid",
    "log-file": "munged.log",
    "seed-file": "seed",
}
CONFIGURATION = """
ClusterName=repro
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
MinJobAge=86400
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000
PartitionName=main Nodes={host} Default=YES State=UP
"""


def why_not() -> str:
    """Why no SLURM can be started here; empty where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    if SYSTEM.exists():
        return f"{SYSTEM} exists: this machine belongs to a cluster, which a test must not use"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root here"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def node() -> Iterator[None]:
    """Start the node and, at the end, kill its daemons and remove its configuration."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path has at most 107 characters
    values = {"host": socket.gethostname().split(".")[0], "folder": folder, "cpus": os.cpu_count()}
    ports = {"port": _free_port(), "node_port": _free_port()}
    SYSTEM.parent.mkdir(exist_ok=True)
    SYSTEM.write_text(CONFIGURATION.format(**values, **ports))
    (folder / "state").mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    munge = [f"--{name}={folder}/{file}" for name, file in MUNGE_FILES.items()]
    try:
        for command in (["munged", "--force", *munge], ["slurmctld"], ["slurmd"]):
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        _until_idle()
        yield
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            if (folder / f"{name}.pid").exists():
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGKILL)
        SYSTEM.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _until_idle() -> None:
    for _ in range(60):
        shown = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
        if shown.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    raise RuntimeError(f"the node did not come up: {shown.stdout}{shown.stderr}")

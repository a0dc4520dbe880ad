"""Slurm on this machine, from Debian's packages: a controller and four nodes, as root, without systemd or cgroups.

Nodes 1 and 2 have a partition ``low`` whose jobs make room for those of ``high``; nodes 3 and 4 are ``calm``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ports import free_port

GRACE_SECONDS = 60
"""Between a preempted job's SIGTERM and its end."""
SILENT_NODE_SECONDS = 20
"""More than a busy machine keeps a daemon waiting."""
NUM_NODES = 4
CPUS = 8
"""A node, whatever the machine has: the ranks of the tests mostly wait."""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/munge.socket
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
SlurmdSpoolDir={base}/spool.%n
StateSaveLocation={base}/state
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout={silent}
KillWait=20
MinJobAge=86400
MessageTimeout=60
TCPTimeout=20
BatchStartTimeout=120
UnkillableStepTimeout=180
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
{nodes}
PartitionName=low  Nodes=node[1-2] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace} State=UP
PartitionName=high Nodes=node[1-2] PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=calm Nodes=node[3-4] PriorityTier=1 PreemptMode=OFF State=UP
"""


def wait_until(is_so: Callable[[], object], seconds: float, what: Callable[[], str]) -> None:
    """Poll.

    Raises:
        AssertionError: it took longer.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


class Cluster:
    """Daemons that this process started, and what it asks them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.environment = {**os.environ, "SLURM_CONF": str(base / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        (self.base / "state").mkdir(parents=True)
        host = socket.gethostname().partition(".")[0]
        ports = [free_port() for _ in range(NUM_NODES + 1)]
        nodes = "\n".join(
            f"NodeName=node{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n]} CPUs={CPUS} RealMemory=2000"
            for n in range(1, NUM_NODES + 1)
        )
        fields = {"base": self.base, "host": host, "nodes": nodes, "controller_port": ports[0]}
        text = CONF.format(**fields, grace=GRACE_SECONDS, silent=SILENT_NODE_SECONDS)
        (self.base / "slurm.conf").write_text(text)
        key = self.base / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        files = [f"--{name}-file={self.base / f'munge.{name}'}" for name in ("key", "pid", "log", "seed")]
        self._launch("munged", "--foreground", "--force", f"--socket={self.base / 'munge.socket'}", *files)
        wait_until((self.base / "munge.socket").exists, 60, lambda: "munged did not start")
        self._launch("slurmctld", "-D", "-c")
        for number in range(1, NUM_NODES + 1):
            self.start_node(f"node{number}")
        wait_until(lambda: self.node_states() == ["idle"] * NUM_NODES, 200, lambda: f"nodes: {self.node_states()}")

    def start_node(self, node: str) -> None:
        self._launch(node, "-D", "-N", node, program="slurmd")

    def stop(self) -> None:
        """End all daemons; what jobs started ends with their nodes."""
        for job in self.ask("squeue", "--noheader", "--format=%A", check=False).split():
            self.ask("scancel", "--full", "--signal=KILL", job, check=False)
            self.ask("scancel", job, check=False)
        wait_until(lambda: not self.ask("squeue", "--noheader", check=False).strip(), 200, lambda: "jobs do not end")
        for name in [*(f"node{n}" for n in range(1, NUM_NODES + 1)), "slurmctld", "munged"]:
            if (daemon := self._daemons.pop(name, None)) is not None:
                end(daemon)

    def kill_node(self, node: str) -> list[int]:
        """As a power failure: the node's daemon and everything on it is gone. Returns the numbers of the processes."""
        tasks = processes_of(node)
        keepers = {parent for parent in map(parent_of, tasks) if is_named(parent, "slurmstepd")}
        daemon = self._daemons.pop(node)
        victims = [daemon.pid, *sorted(keepers), *tasks]
        for process in victims:
            with contextlib.suppress(ProcessLookupError):  # ended with another one
                os.kill(process, signal.SIGKILL)
        daemon.wait(timeout=20)
        return victims

    def ask(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Fields of a job."""
        text = self.ask("scontrol", "--oneliner", "show", "job", number)
        return dict(field.split("=", 1) for field in text.split() if "=" in field)

    def node_states(self) -> list[str]:
        return self.ask("sinfo", "--noheader", "--Node", "--partition=low,calm", "--format=%T", check=False).split()

    def _launch(self, name: str, *arguments: str, program: str | None = None) -> None:
        with (self.base / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                [program or name, *arguments], env=self.environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )


@contextmanager
def running(base: Path) -> Iterator[Cluster]:
    """A cluster that is up, and down again behind it."""
    cluster = Cluster(base)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL."""
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout=15)


def processes_of(node: str) -> list[int]:
    """Processes that a node's jobs started."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"SLURMD_NODENAME={node}".encode() in (folder / "environ").read_bytes().split(
                b"\0"
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def parent_of(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def is_named(process: int, name: str) -> bool:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(name.encode())
    except OSError:
        return False

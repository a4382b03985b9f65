"""The fleet of docker/compose.yaml for real: built, started, used, scaled, and tried at its locks.

    python -m bench.containers [--standins] [--json FILE]

Builds both images, brings up Redis, the S3 server, one worker a queue, Flower, metrics and
Prometheus, sends small runs of the miniature through, kills and stops what may be killed and
stopped, and looks from inside at what each container may do. Then all of it once more over TLS, as
docker/compose.tls.yaml opens it to other machines. With --standins it needs no registry
(see bench/engine.py); Grafana, of which no package is to be had, is left out then. Ends with 1 if a
check fails.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from bench.engine import ROOT, Engine, engine

DOCKER = ROOT / "docker"
SERVICES = (
    *("redis", "s3", "prompt", "propose", "verify", "mend"),
    *("flower", "metrics", "prometheus"),
)
PROMPTS = "a hand holding a red mug\na hand with a blue key\n"
PATIENCE_S = 300.0

# Run by sh within a container: what it may do, and what it shows.
INSIDE = r"""
echo "uid $(id -u)"
echo "root $(touch /probe 2>/dev/null && echo open || echo shut)"
grep -E '^(CapEff|NoNewPrivs)' /proc/1/status
cat /proc/[0-9]*/cmdline | tr '\0' ' '
"""
ASK = "import sys; from urllib.request import urlopen; urlopen(sys.argv[1], timeout=5)"

out = Console()


def main(
    standins: Annotated[bool, typer.Option(help="An engine and images of our own.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here.")
    ] = None,
) -> None:
    """Build, start, use, scale, kill and inspect the fleet."""
    with engine(standins) as docker, tempfile.TemporaryDirectory() as folder:
        figures = build(docker)
        fleet = Fleet(docker, Path(folder), SERVICES if standins else (*SERVICES, "grafana"))
        try:
            figures |= fleet.start()
            fleet.look_inside()
            fleet.try_doors()
            figures |= fleet.work()
            fleet.kill_servers_and_stop_a_worker()
            figures["memory_mb"] = fleet.memory_mb()
            figures["tls_run_s"] = fleet.work_over_tls()
        finally:
            fleet.compose("down", "--volumes", "--timeout=5", check=False)
    figures["failed"] = {check: found for check, found in fleet.checks.items() if found}
    figures["checks"] = len(fleet.checks)
    show(figures, fleet.checks)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))
    if figures["failed"]:
        sys.exit(1)


def build(docker: Engine) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for target in ("light", "gpu"):
        started, image = time.monotonic(), f"ppv-{target}"
        options = ["-f", f"{DOCKER}/Dockerfile", "--target", target, "-t", image]
        docker.run("build", *options, str(ROOT))
        figures[f"{target}_build_s"] = time.monotonic() - started
        size = docker.run("image", "inspect", image, "--format", "{{.Size}}")
        figures[f"{target}_mb"] = int(size) / 1e6
    return figures


class Fleet:
    """A copy of docker/ as a project of its own, with secrets of its own.

    checks: what must hold, and where it was found not to.
    """

    def __init__(self, docker: Engine, folder: Path, services: tuple[str, ...]) -> None:
        self._docker, self._home, self._services = docker, folder / "docker", services
        shutil.copytree(DOCKER, self._home, ignore=shutil.ignore_patterns(".env", "tls"))
        subprocess.run([str(self._home / "secrets.sh")], check=True, stdout=subprocess.DEVNULL)
        env = self._home / ".env"
        env.write_text(env.read_text().replace("PROJECT_NAME=ppv", "PROJECT_NAME=ppv-bench"))
        pairs = (line.split("=", 1) for line in env.read_text().splitlines() if "=" in line)
        self._env = dict(pairs)
        self._files = [self._home / "compose.yaml"]
        self.checks: dict[str, list[str]] = {}

    def compose(self, *command: str, stdin: str = "", check: bool = True) -> str:
        files = (f"--file={file}" for file in self._files)
        here = (*files, f"--project-directory={self._home}")
        return self._docker.run_compose(*here, *command, stdin=stdin, check=check)

    def start(self) -> dict[str, Any]:
        started = time.monotonic()
        self._up()
        return {"well_after_s": time.monotonic() - started}

    def look_inside(self) -> None:
        """What the kernel allows each container, and whether a secret is to be seen in it."""
        secrets = [
            value for name, value in self._env.items() if "PASSWORD" in name or "KEY" in name
        ]
        for service in self._services:
            said = self._exec(service, "sh", "-c", INSIDE)
            words = said.split()
            self._check("runs as nobody special", service, "uid 0\n" not in said)
            self._check("cannot write to its root", service, "root shut" in said)
            capabilities = int(words[words.index("CapEff:") + 1], 16)
            self._check("has no capability", service, capabilities == 0)
            self._check("gains no privilege", service, words[words.index("NoNewPrivs:") + 1] == "1")
            bare = not any(secret in said for secret in secrets)
            self._check("no secret among the arguments of processes", service, bare)

    def try_doors(self) -> None:
        ports = self._docker.run("ps", "--format", "{{.Ports}}", "--filter", "name=ppv-bench")
        published = [port for port in ports.replace(",", "\n").split() if "->" in port]
        for port in published:
            self._check("published on loopback alone", port, port.startswith("127.0.0.1:"))
        page, login = "http://127.0.0.1:5555/workers", ("ppv", self._env["FLOWER_PASSWORD"])
        shut, opened = httpx.get(page), httpx.get(page, auth=login, timeout=30)
        self._check("Flower asks for the login", page, shut.status_code == 401)
        self._check("Flower opens to the login", page, opened.status_code == 200)
        bare = self._exec("redis", "sh", "-c", "unset REDISCLI_AUTH; redis-cli ping 2>&1")
        self._check("Redis asks for its password", "redis", "NOAUTH" in bare)
        for url, answer in (
            ("http://s3:8333/ppv", "403"),
            ("http://s3:8888/", "refused"),  # its own services have no password
            ("http://s3:9333/", "refused"),
            ("http://s3:8080/", "refused"),
        ):
            said = self._exec("prompt", "sh", "-c", f"python -c '{ASK}' {url} 2>&1", check=False)
            self._check(f"the store does not serve whoever asks ({answer})", url, answer in said)
        for url in ("http://redis:6379", "http://s3:8333"):
            asked = f"wget -q -T 5 -O- {url} >/dev/null 2>&1 && echo reached"
            said = self._exec("prometheus", "sh", "-c", asked, check=False)
            self._check("dashboards reach neither Redis nor the store", url, "reached" not in said)

    def work(self) -> dict[str, Any]:
        """A run with one worker a queue, and one with two that draw."""
        figures = {"one_propose_worker_s": self._run("first", PROMPTS)}
        self.compose("up", "--detach", "--scale", "propose=2", "propose")
        self._until(lambda: self._is_well("propose", 2), "two propose workers are well")
        many = "".join(f"a hand holding a red mug, number {n}\n" for n in range(16))
        figures["two_propose_workers_s"] = self._run("second", many)
        for container in self._containers("propose"):
            drew = "succeeded" in self._docker.logs(container)
            self._check("each of two propose workers draws", container, drew)
        self._until(lambda: self._scraped("ppv_judged_total") > 0, "Prometheus has what was judged")
        return figures

    def kill_servers_and_stop_a_worker(self) -> None:
        """kill -9 of Redis and the store with work queued; then a stop in the midst of drawing."""
        self.compose("stop", "propose")
        self.compose("run", "--rm", "-T", "ppv", "enqueue", "-", "--run", "third", stdin=PROMPTS)
        self._until(lambda: self._queued("propose") > 0, "what is to be drawn is queued")
        queued = self._queued("propose")
        time.sleep(1.5)  # appendfsync everysec
        for server in ("redis", "s3"):
            self._docker.run("kill", *self._containers(server))
        self.compose("up", "--detach", "redis", "s3")
        self._until(lambda: self._is_well("redis") and self._is_well("s3"), "both are back")
        self._check("messages outlive kill -9 of Redis", "redis", self._queued("propose") == queued)
        done = self._status("first")
        self._check("objects outlive kill -9 of the store", "s3", done["missing"] == 0)

        self.compose("up", "--detach", "--scale", "propose=1", "propose")
        (worker,) = self._containers("propose")
        self._until(lambda: "received" in self._since_start(worker), "it draws")
        self.compose("stop", "propose")
        code = self._docker.run("inspect", worker, "--format", "{{.State.ExitCode}}").strip()
        self._check("a worker that is stopped ends its batch first", worker, code == "0")
        drawn = self._status("third")["drawn"]
        self._check("a worker that is stopped ends its batch first", f"{drawn} drawn", drawn > 0)
        self.compose("up", "--detach", "propose")
        self._until(lambda: self._status("third")["finished"], "the third run")
        missing = self._status("third")["missing"]
        self._check("nothing is missing afterwards", "third", missing == 0)

    def memory_mb(self) -> dict[str, float]:
        """Of each container at the end, in the kernel's account of it."""
        asked = ["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"]
        units = {"KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
        found = {}
        for line in self._docker.run(*asked).splitlines():
            name, used, *_ = line.split()
            if name.startswith("ppv-bench"):
                found[name] = float(used[:-3]) * units[used[-3:]]
        return found

    def work_over_tls(self) -> float:
        """The same fleet by compose.tls.yaml, and who comes without TLS."""
        subprocess.run([str(self._home / "tls.sh"), "localhost"], check=True, capture_output=True)
        self._files.append(self._home / "compose.tls.yaml")
        self._up()
        plain = self._exec("redis", "sh", "-c", "redis-cli ping 2>&1", check=False)
        self._check("with TLS, Redis answers nobody without", "redis", "PONG" not in plain)
        said = self._exec(
            "prompt", "sh", "-c", f"python -c '{ASK}' http://s3:8333/ 2>&1", check=False
        )
        self._check("with TLS, the store answers nobody without", "s3", "400" in said)
        return self._run("over-tls", PROMPTS)

    def _up(self) -> None:
        self.compose("up", "--detach", *self._services)
        for service in self._services:
            self._until(lambda service=service: self._is_well(service), f"{service} is well")

    def _run(self, name: str, prompts: str) -> float:
        started = time.monotonic()
        self.compose("run", "--rm", "-T", "ppv", "enqueue", "-", "--run", name, stdin=prompts)
        self._until(lambda: self._status(name)["finished"], f"run {name}")
        status = self._status(name)
        bad = status["missing"] + status["failed"]
        self._check("runs end with nothing missing or failed", name, bad == 0)
        return time.monotonic() - started

    def _status(self, run: str) -> dict[str, Any]:
        said = self._exec("prompt", "ppv", "status", run, "--json")
        status: dict[str, Any] = json.loads(said)
        return status

    def _queued(self, queue: str) -> int:
        return int(self._exec("redis", "redis-cli", "llen", queue))

    def _exec(self, service: str, *command: str, check: bool = True) -> str:
        return self.compose("exec", "-T", service, *command, check=check)

    def _scraped(self, metric: str) -> float:
        """A metric's sum, as Prometheus has it."""
        query = f"http://127.0.0.1:9090/api/v1/query?query=sum({metric})"
        said = json.loads(self._exec("prometheus", "wget", "-q", "-O-", query))
        return sum(float(each["value"][1]) for each in said["data"]["result"])

    def _containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def _is_well(self, service: str, count: int = 1) -> bool:
        asked = ["inspect", "--format", "{{.State.Health.Status}}", *self._containers(service)]
        return self._docker.run(*asked).split() == ["healthy"] * count

    def _since_start(self, container: str) -> str:
        """Its log without what it said before it was last started."""
        started = self._docker.run("inspect", container, "--format", "{{.State.StartedAt}}")
        return self._docker.logs(container, since=started.strip())

    def _check(self, what: str, where: str, held: bool) -> None:
        failed = self.checks.setdefault(what, [])
        if not held:
            failed.append(where)

    @staticmethod
    def _until(condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > end:
                sys.exit(f"not within {PATIENCE_S:.0f} s: {what}")
            time.sleep(0.5)


def show(figures: dict[str, Any], checks: dict[str, list[str]]) -> None:
    table = Table(title="A fleet in containers")
    table.add_column("")
    table.add_column("", justify="right")
    for image in ("light", "gpu"):
        table.add_row(f"the {image} image", f"{figures[f'{image}_mb']:,.0f} MB")
        table.add_row("  built in", f"{figures[f'{image}_build_s']:.0f} s")
    table.add_row("from up until all are well", f"{figures['well_after_s']:.0f} s")
    table.add_row("2 base prompts, one propose worker", f"{figures['one_propose_worker_s']:.0f} s")
    table.add_row("16 base prompts, two of them", f"{figures['two_propose_workers_s']:.0f} s")
    table.add_row("2 base prompts over TLS", f"{figures['tls_run_s']:.0f} s")
    for name, used in sorted(figures["memory_mb"].items()):
        table.add_row(f"memory of {name}", f"{used:,.0f} MB")
    for check, failed in checks.items():
        table.add_row(check, f"NO: {', '.join(failed)}" if failed else "yes")
    out.print(table)


if __name__ == "__main__":
    typer.run(main)

"""A real Prometheus of a test's own, on loopback, with the rules that the fleet has."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "docker" / "prometheus"


class Prometheus:
    """The fleet's configuration, but for whom it asks, and that it asks every second."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        shutil.copy(FOLDER / "rules.yml", folder)
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        with (folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={address}",
                ],
                stdout=log,
                stderr=log,
            )
        self._http = httpx.Client(base_url=f"http://{address}/api/v1/", timeout=20)
        try:
            end = time.monotonic() + 60
            while not self.series("up == 1"):
                assert self._process.poll() is None and time.monotonic() < end, self.log()
                time.sleep(0.2)
        except BaseException:
            self.end()
            raise

    def ask(self, verb: str, **parameters: str) -> Any:
        """The data of an answer; None while it starts."""
        try:
            answer = self._http.get(verb, params=parameters)
        except httpx.ConnectError:
            return None
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return None
        body = answer.json()
        assert body["status"] == "success", f"{parameters}: {body.get('error')}"
        return body["data"]

    def series(self, expression: str) -> list[dict[str, str]]:
        """The labels of each series that it gives now. Fails if Prometheus cannot read it."""
        data = self.ask("query", query=expression) or {"result": []}
        return [each["metric"] for each in data["result"] if isinstance(each, dict)]

    def log(self) -> str:
        return (self._folder / "log").read_text()

    def end(self) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()


def program(name: str) -> str:
    """Skips the test where there is no Prometheus, and says so."""
    if found := shutil.which(name):
        return found
    reason = "NO PROMETHEUS: no rule or panel is tried (Debian: apt-get install prometheus)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)

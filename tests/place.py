"""A folder in which the command line is used as a user would, with tiny models configured."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.folder import FolderStore
from storage.runs import RunFolder

PPV = str(Path(sys.executable).with_name("ppv"))
DEADLINE_S = 240.0


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Place:
    """A user's folder: ppv.toml, base prompts, and whatever the commands leave there."""

    def __init__(
        self, folder: Path, models: Path, bases: Sequence[str], num_inference_steps: int = 1
    ) -> None:
        self.folder = folder
        (folder / "bases.txt").write_text("".join(f"{base}\n" for base in bases))
        (folder / "ppv.toml").write_text(
            # The tiny models read letter by letter: a budget of letters would cut every prompt.
            '[prompter]\nfit = "proposer"\n'
            f'[proposer]\nmodel = "{models / "base"}"\nimages_per_message = 4\nbatch_size = 4\n'
            f"sampler = {{ num_inference_steps = {num_inference_steps} }}\n"
            f'[verifier]\nmodel = "{models / "verifier"}"\n'
            "thresholds = { fidelity = 0.0, alignment = 0.0 }\n"
            "[dispatch]\nstall_s = 5.0\n"
        )

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A ppv command that goes on while the test does something else."""
        return self.spawn(PPV, *command)

    def spawn(self, *command: str) -> subprocess.Popen[str]:
        root = str(Path(__file__).parents[1])
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": root},
            # A shell has what runs in its background ignore Ctrl-C, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: subprocess.Popen[str], stdin: str | None = None) -> Ended:
        """Wait for a command that was started; none ever shows a traceback."""
        try:
            out, err = process.communicate(stdin, timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert "Traceback" not in err, err
        return Ended(process.returncode, out, err)

    def ppv(self, *command: str, stdin: str | None = None) -> Ended:
        return self.end(self.start(*command), stdin)

    def status(self, run: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.ppv("status", run, "--json").out)
        return status

    def run_folder(self, run: str) -> RunFolder:
        """A run's objects as they lie on disk, past the embedded S3 server."""
        return RunFolder(FolderStore(self.folder / ".ppv" / "s3" / "ppv"), run)

    def processes(self, *words: str) -> list[int]:
        """The processes that run in this folder or below, with these words in their arguments."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                here = (entry / "cwd").readlink().is_relative_to(self.folder)
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if here and line and all(word in line for word in words):
                found.append(int(entry.name))
        return found

    def clear(self) -> None:
        """End whatever a failed test left running here."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Look again and again until the condition holds."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.1)

"""The Celery app: `celery -A workers worker -Q prompt` (or propose, or verify) finds it here.

Importing it loads nothing heavy; what a queue needs is loaded by its first task.
"""

import gc
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_init, worker_process_init

from workers import logs, metrics, traces
from workers.processes import end_with_parent

# Flower takes its options from here unless told otherwise: loopback, behind a login.
os.environ.setdefault("FLOWER_CONF", str(Path(__file__).parent / "flowerconfig.py"))

app = Celery("ppv", config_source="workers.celeryconfig")

_HEAVY = (
    "datasketch",
    "openai.resources.chat",
    "transformers.models.bert.tokenization_bert",
    "transformers.models.clip.tokenization_clip",
    "workers.describing",
)


def load_before_forking(sender: Any, **_: object) -> None:
    """What prompt workers share is loaded once, before they part: it costs seconds and 70 MB each.

    The models of the other queues are for their children alone; CUDA must not be touched here.
    """
    queues = sender.app.amqp.queues.consume_from
    if {"propose", "verify"} & queues.keys() and find_spec("torch") is None:
        raise SystemExit("ppv: this installation has no torch, so it serves the prompt queue only")
    if "prompt" in queues:
        for module in _HEAVY:
            import_module(module)


def freeze_what_is_shared(**_: object) -> None:
    """What is loaded before the processes part stays for good; no collector need walk it again."""
    gc.freeze()


def share_cores(sender: Any, **_: object) -> None:
    """A worker's processes have the cores between them; with all of them each, they would wait.

    Torch reads it when a process first loads it, after the fork.
    """
    if sender.concurrency > 1:
        share = max(1, (os.cpu_count() or 1) // sender.concurrency)
        os.environ.setdefault("OMP_NUM_THREADS", str(share))


def compile_before_working(**_: object) -> None:
    """A denoiser that is to be compiled is compiled before the first message: it takes minutes."""
    from workers import resources
    from workers.settings import settings

    if "propose" in app.amqp.queues.consume_from and settings().proposer.compile:
        resources.warm_up()


def end_with_worker(**_: object) -> None:
    """When its worker is killed, a pool's child goes too, and keeps no GPU."""
    end_with_parent()


worker_init.connect(load_before_forking)
worker_init.connect(share_cores)
worker_init.connect(freeze_what_is_shared)
worker_process_init.connect(end_with_worker)
worker_process_init.connect(compile_before_working)
logs.connect()
metrics.connect()
traces.connect()
app.Task.resultrepr_maxsize = 0  # a message goes on to the next queue: its prompts are in no log

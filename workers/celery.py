"""The Celery app: `celery -A workers worker -Q prompt` (or propose, or verify) finds it here.

Importing it loads nothing heavy; what a queue needs is loaded by its first task.
"""

import os
from pathlib import Path

from celery import Celery

# Flower takes its options from here unless told otherwise: loopback, behind a login.
os.environ.setdefault("FLOWER_CONF", str(Path(__file__).parent / "flowerconfig.py"))

app = Celery("ppv", config_source="workers.celeryconfig")

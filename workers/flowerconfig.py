"""Flower's options unless others are given: on loopback, behind a login.

Flower runs this file; workers/celery.py points it here. FLOWER_BASIC_AUTH, FLOWER_ADDRESS and
the command line's options win.
"""

import os
import sys
from urllib.parse import urlsplit

from workers.private import kept_password
from workers.settings import settings

_password_file = settings().state_dir / "flower-password"

if "FLOWER_ADDRESS" not in os.environ:
    address = "127.0.0.1"
if "FLOWER_BASIC_AUTH" not in os.environ:
    basic_auth = [f"ppv:{kept_password(_password_file)}"]
    print(f"Flower's login: ppv, with the password in {_password_file}", file=sys.stderr)

# Flower asks RabbitMQ's management how long the queues are: by itself, with the password over plain
# http.
_broker = urlsplit(settings().broker_url.get_secret_value())
if _broker.scheme == "amqps" and "FLOWER_BROKER_API" not in os.environ:
    broker_api = f"https://{_broker.hostname}:15671/api/"

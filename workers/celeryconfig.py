"""Celery's settings: at-least-once delivery of JSON messages, and no results.

Read when the app is first used, not when it is imported. Why each is as it is stands beside it.
"""

from kombu.transport import TRANSPORT_ALIASES as _TRANSPORTS

from pipeline.errors import PpvError as _PpvError
from workers.embedded import broker_url as _broker_url
from workers.rabbitmq import is_rabbitmq as _is_rabbitmq
from workers.settings import settings as _settings
from workers.tls import tls_options as _tls_options

try:
    broker_url = _broker_url(_settings())
except _PpvError as _error:
    raise SystemExit(f"ppv: {_error}") from None

# Certificates are verified; Celery by itself would not.
broker_use_ssl = _tls_options(broker_url, _settings().tls_ca) or False

# Neither of them ends at a message that is none.
worker_consumer = "workers.consumer:Consumer"
_TRANSPORTS.update(redis="workers.consumer:Transport", rediss="workers.consumer:Transport")

include = ["workers.prompt", "workers.propose", "workers.verify", "workers.mend"]

# For the one worker that has --beat; a look that comes late is none.
beat_schedule = {
    "mend": {"task": "mend", "schedule": 5.0, "options": {"queue": "mend", "expires": 5.0}}
}

# JSON only: a pickled message could run code.
accept_content = ["json"]
task_serializer = "json"

# The store is the truth. Results would fill Redis and slow it by an order of magnitude.
task_ignore_result = True

# A message is done when its work is stored, also when a worker dies half way.
task_acks_late = True
task_reject_on_worker_lost = True
worker_prefetch_multiplier = 1

# One model in one process; `-c` raises it, for prompt workers that wait for an endpoint.
worker_concurrency = 1

# A child that compiles its model says only then that it lives.
worker_proc_alive_timeout = 1800 if _settings().proposer.compile else 30

task_default_queue = "prompt"

broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_channel_error_retry = True  # a Redis whose disk is full says so with errors of that kind
broker_transport_options: dict[str, int | bool]
if _is_rabbitmq(broker_url):
    # A message counts as sent when the broker has it. What a worker held comes back with the end
    # of its connection.
    broker_transport_options = {"confirm_publish": True}
else:
    broker_transport_options = {
        # Longer than any batch, or work is done twice for ever.
        "visibility_timeout": _settings().dispatch.visibility_timeout_s,
        # Looks for messages of dead workers every few seconds instead of every minute or so.
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
        # A worker, or Redis, that dies while it looks leaves the lock behind, 300 s by default.
        "unacked_mutex_expire": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }

# A link of a chain that cannot be published is lost, so keep trying while Redis is away. A large
# number, since None is capped.
task_publish_retry_policy = {
    "max_retries": 1_000_000,
    "interval_start": 0.2,
    "interval_step": 0.5,
    "interval_max": 3,
}

# For Flower; a message is a batch, so events cost little.
worker_send_task_events = True

worker_hijack_root_logger = False

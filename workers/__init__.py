"""Where the work runs: the Celery app, one module a queue, the canvas, the command line."""

"""`ppv metrics`: what Prometheus reads, for the whole fleet."""

from workers.cli import options

PORT = 9808


def metrics(
    host: options.Host = "127.0.0.1",
    port: options.Port = PORT,
    set_: options.Set = None,
) -> None:
    """Serve the fleet's metrics at /metrics, until Ctrl-C. There is no login."""
    from contextlib import closing
    from threading import Event

    from prometheus_client import CollectorRegistry, start_http_server

    from pipeline.errors import InputError
    from pipeline.taxonomy import load_taxonomy
    from workers.cli.show import console
    from workers.embedded import broker_of
    from workers.exporter import Fleet
    from workers.settings import settings

    taxonomy = load_taxonomy(settings().prompter.taxonomy)
    with closing(broker_of(settings())) as broker:
        registry = CollectorRegistry()
        registry.register(Fleet(broker, tuple(taxonomy.categories)))
        try:
            server, _ = start_http_server(port, host, registry)
        except OSError as error:
            raise InputError(f"--host {host} --port {port}: {error.strerror}") from None
        console.print(f"metrics  http://{host}:{server.server_port}/metrics")
        Event().wait()

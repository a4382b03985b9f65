"""`ppv cancel`: stop a run."""

from workers.cli import options


def cancel(run: options.Run, set_: options.Set = None) -> None:
    """Stop what is queued: the run's messages leave Redis, or are dropped by the workers.

    What is done stays done; `ppv resume` goes on later.
    """
    from storage.runs import RunFolder
    from workers import dispatch
    from workers.embedded import broker_of, store_of
    from workers.settings import settings

    config = settings()
    broker = broker_of(config)
    broker.ping()
    folder = RunFolder(store_of(config), run)
    folder.read()
    dispatch.cancel(folder, broker)
    print(f"run {folder.name} is cancelled; `ppv resume {folder.name}` goes on with it")

"""`ppv up`: everything that work needs, kept up on this machine."""

from typing import Annotated

import typer

from workers.cli import options


def up(
    flower_port: Annotated[int, typer.Option(help="Flower's port on loopback.")] = 5555,
    set_: options.Set = None,
) -> None:
    """Keep broker, store, one worker a queue and Flower up, until Ctrl-C.

    What is configured is used; the rest is started here. Other commands in this folder find it.
    """
    import time
    from contextlib import suppress

    from pipeline.errors import ServiceError
    from workers.cli.session import session
    from workers.cli.show import console
    from workers.fleet import Crew, flower
    from workers.mend import Mender

    with (
        session() as here,
        Crew(here.settings, here.children) as crew,
        flower(here.settings, flower_port) as dashboard,
    ):
        crew.tend()
        console.print(f"broker   {here.broker.addresses}\nstore    {here.store.address}")
        console.print(
            f"flower   http://127.0.0.1:{flower_port} (user ppv, password in "
            f"{here.settings.state_dir / 'flower-password'})"
        )
        console.print("workers  one for each of prompt, propose, verify; Ctrl-C ends them all")
        mender = Mender(here.store, here.broker, here.settings)
        while True:
            dashboard.tend()
            if crew.tend():
                mender.doubt()
            with suppress(ServiceError):  # one that was just started anew
                mender.look()
            time.sleep(1)

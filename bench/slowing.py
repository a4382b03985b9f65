"""A TCP proxy before an S3 server that can make every call wait, as a slow or distant one would."""

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress

_CHUNK = 2**16


class SlowLane:
    """Listens on some addresses of this machine and passes all on to a port of loopback.

    delay_s: what each request waits before its first bytes go on; may be changed at any time.
    """

    def __init__(self, hosts: Sequence[str], port: int, target_port: int) -> None:
        self.delay_s = 0.0
        self._hosts, self._port, self._target = list(hosts), port, target_port
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "SlowLane":
        self._thread.start()
        if not self._ready.wait(20):
            raise OSError(f"nothing can listen on port {self._port}")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()

    def _stop(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.call_later(0.2, self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        serving = asyncio.start_server(self._serve, self._hosts, self._port)
        self._loop.run_until_complete(serving)
        self._ready.set()
        self._loop.run_forever()
        self._loop.close()

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        try:
            server, request = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            answer.close()
            return
        asking = False  # the client has sent a request that is not answered yet

        async def ask() -> None:
            nonlocal asking
            while data := await client.read(_CHUNK):
                if not asking:
                    asking = True
                    await asyncio.sleep(self.delay_s)
                request.write(data)
                await request.drain()

        async def reply() -> None:
            nonlocal asking
            while data := await server.read(_CHUNK):
                asking = False
                answer.write(data)
                await answer.drain()

        # Whichever side ends first, the other is closed too.
        tasks = [asyncio.create_task(ask()), asyncio.create_task(reply())]
        with suppress(asyncio.CancelledError):  # by us, in the end
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for side in (request, answer):
            side.close()

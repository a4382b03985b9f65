"""The page over HTTP: each key is a POST, whose answer is what the page shows next."""

import secrets
import socket
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse

from pipeline.errors import InputError, PpvError
from pipeline.labels import QUESTIONS, REASONS, Question, Said
from pipeline.types import Id
from storage.objects import ObjectNotFound
from workers.labelling.desk import Desk, View
from workers.labelling.guard import Guard
from workers.labelling.queue import Picture
from workers.pages.rendering import environment, inlined
from workers.pages.thumbnails import decoded, thumbnail
from workers.pages.wording import percent

PROMPT_CHARACTERS = 4000
DISPUTED = 200  # on one page
_KEEP = {"cache-control": "private, max-age=3600"}  # an id is a hash: its picture never changes

REASON_KEYS = dict(zip("1234567890", REASONS, strict=True))


def create_app(
    desk: Desk,
    image_of: Callable[[str], bytes],
    *,
    title: str,
    annotator: str,
    trouble: Callable[[], str],
    refresh: Callable[[], None],
) -> FastAPI:
    """image_of: a picture's bytes by its id; raises ObjectNotFound.

    trouble: why the store lacks some labels, if it does. refresh: looks again what others said.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    templates = environment(PROMPT_CHARACTERS)
    templates.filters["in_words"] = in_words
    templates.globals |= {
        "title": title,
        "annotator": annotator,
        "reason_keys": REASON_KEYS,
        "reasons": REASONS,
        "trouble": trouble,
        "percent": percent,
        "no_prompt": "The prompt is empty.",
    }
    files = {
        "label.css": (inlined("report.css", "label.css"), "text/css"),
        "label.js": (inlined("label.js"), "text/javascript"),
        "htmx.min.js": (inlined("htmx.min.js"), "text/javascript"),
    }

    reloaded: set[str] = set()  # pictures that were there though a browser had none

    def page(name: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(templates.get_template(name).render(**values))

    def shown(view: View) -> HTMLResponse:
        return page("label_picture.html.j2", view=view)

    def swept(pictures: Iterable[Picture], note: str = "") -> HTMLResponse:
        return page("label_sweep.html.j2", view=desk.view(note=note), cells=cells(pictures))

    def cells(pictures: Iterable[Picture]) -> list[tuple[Picture, bool]]:
        return [(picture, desk.said(picture.id).fidelity is False) for picture in pictures]

    @app.get("/")
    def picture_page(id: Id | None = None) -> HTMLResponse:
        return page("label.html.j2", body="label_picture.html.j2", view=desk.view(id))

    @app.get("/grid")
    def grid_page() -> HTMLResponse:
        body, some = "label_sweep.html.j2", cells(desk.to_sweep())
        return page("label.html.j2", body=body, view=desk.view(), cells=some)

    @app.get("/disagreements")
    def disagreements_page() -> HTMLResponse:
        refresh()
        body, disputed = "label_disputed.html.j2", desk.disputed(DISPUTED)
        return page("label.html.j2", body=body, view=desk.view(), disputed=disputed)

    @app.get("/files/{name}")
    def file(name: str) -> Response:
        if name not in files:
            raise InputError(f"no file {name!r}")
        text, kind = files[name]
        return Response(text, media_type=kind)

    def stored(id: str) -> bytes:
        """Nothing if the store has no such picture any more."""
        desk.picture(id)
        try:
            return image_of(id)
        except ObjectNotFound:
            return b""

    def pass_over(id: str, data: bytes) -> str:
        why = "is broken" if data else "is gone from the store"
        desk.gone(id, why)
        return f"picture {id} {why}"

    def sent(id: str, data: bytes, kind: str | None) -> Response:
        """kind: None for what is no whole picture."""
        if kind is None:
            raise ObjectNotFound(pass_over(id, data))
        return Response(data, media_type=kind, headers=_KEEP)

    @app.get("/images/{id}")
    def whole_image(id: Id) -> Response:
        data = stored(id)
        image = decoded(data)
        return sent(id, data, image.get_format_mimetype() if image else None)

    @app.get("/thumbnails/{id}")
    def small_image(id: Id) -> Response:
        data = stored(id)
        return sent(id, *(thumbnail(data) or (data, None)))

    @app.post("/pictures/{id}/answers/{question}/{answer}")
    def answer(
        id: Id, question: Question, answer: Literal["yes", "no"], last: bool = False
    ) -> HTMLResponse:
        """last: the page shows the other question as answered, so that the next picture is due.

        Where another page answered it meanwhile, a key for it is still to come, and must find the
        same picture.
        """
        desk.answer(id, question, answer == "yes")
        return shown(desk.view(None if last and desk.said(id).whole else id))

    @app.post("/pictures/{id}/reasons/{reason}")
    def reason(id: Id, reason: str) -> HTMLResponse:
        desk.reason(id, reason)
        return shown(desk.view(id))

    @app.post("/pictures/{id}/rest")
    def rest(id: Id) -> HTMLResponse:
        desk.rest(id)
        return shown(desk.view())

    @app.post("/pictures/{id}/skip")
    def skip(id: Id) -> HTMLResponse:
        desk.skip(id)
        return shown(desk.view())

    @app.post("/pictures/{id}/gone")
    def gone(id: Id) -> Response:
        """The browser has no picture: it is gone, or broken, or the store was away for a moment."""
        data = stored(id)
        if id not in reloaded and decoded(data):
            reloaded.add(id)
            return Response(headers={"hx-refresh": "true"})
        pass_over(id, data)
        return shown(desk.view())

    @app.post("/undo")
    def undo() -> HTMLResponse:
        ids = desk.undo()
        note = "" if ids else "There is nothing to take back."
        return shown(desk.view(ids[0] if ids else None, note))

    @app.post("/grid/{id}/{mark}")
    def mark(id: Id, mark: Literal["bad", "good"]) -> HTMLResponse:
        desk.mark(id, mark == "bad")
        return page("label_cell.html.j2", picture=desk.picture(id), bad=mark == "bad")

    @app.post("/grid")
    def sweep(ids: Annotated[list[str], Depends(_ids)]) -> HTMLResponse:
        count = desk.sweep(ids)
        note = f"{count} hands are right, {len(ids) - count} are marked."
        return swept(desk.to_sweep(), note)

    @app.post("/grid-undo")
    def undo_sweep(ids: Annotated[list[str], Depends(_ids)]) -> HTMLResponse:
        changed = desk.undo()
        here = ids if set(changed) <= set(ids) else changed
        note = "Taken back." if changed else "There is nothing to take back."
        return swept(map(desk.picture, here), note)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: Exception) -> Response:
        return PlainTextResponse("This is no address of the page.\n", 400)

    @app.exception_handler(PpvError)
    def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, InputError | ObjectNotFound):
            return PlainTextResponse(f"{error}\n", 404)
        return PlainTextResponse(f"{error}\n", 503)

    return app


async def _ids(request: Request) -> list[str]:
    """The pictures that a form names."""
    return parse_qs((await request.body()).decode("latin-1")).get("id", [])


def in_words(said: Said) -> str:
    """ "hand right, text wrong: wrong pose", or "left open" if nothing was said."""
    names = {"fidelity": "hand", "alignment": "text"}
    answers = ((names[question], said.answer(question)) for question in QUESTIONS)
    text = ", ".join(
        f"{name} {'right' if yes else 'wrong'}" for name, yes in answers if yes is not None
    )
    reasons = ", ".join(said.reasons).replace("_", " ")
    return f"{text}: {reasons}" if reasons else text or "left open"


class LabelServer:
    """Listens from the start, so that its address is known; answers while `run` runs."""

    def __init__(self, host: str, port: int) -> None:
        """port: 0 for a free one. Raises InputError if nobody can listen there."""
        self._token = secrets.token_urlsafe(24)
        self.loopback, self._names = _names(host)
        try:
            self._socket = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except (OSError, OverflowError) as error:
            raise InputError(f"cannot listen at {host}, port {port}: {error}") from None
        self.port: int = self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """With the token: for the annotator alone."""
        return f"http://{self._names[0]}:{self.port}/?token={self._token}"

    def run(self, app: FastAPI) -> None:
        """Until Ctrl-C or SIGTERM."""
        hosts = frozenset(f"{name}:{self.port}" for name in self._names)
        # Cookies know no ports: servers beside one another need names of their own.
        guarded = Guard(app, self._token, hosts, f"ppv-label-{self.port}")
        config = uvicorn.Config(
            guarded,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=128,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[self._socket])

    def close(self) -> None:
        self._socket.close()


def _names(host: str) -> tuple[bool, list[str]]:
    """Whether this is the machine's own loopback, and by which names it may be called.

    Raises InputError for what is no address, and for one that stands for all of them: then nobody
    knows what the Host header may say.
    """
    if host == "localhost":
        host = "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError:
        raise InputError(f"--host {host!r}: give an address, such as 127.0.0.1") from None
    if address.is_unspecified:
        raise InputError(f"--host {host}: give the one address of this machine to listen at")
    name = f"[{host}]" if address.version == 6 else host
    return address.is_loopback, [name, "localhost"] if address.is_loopback else [name]

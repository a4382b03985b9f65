"""What every such page is made of: files, pictures, templates, and words for what went wrong."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from jinja2 import Environment

from pipeline.errors import InputError, PpvError
from pipeline.types import Id
from storage.objects import ObjectNotFound
from workers.pages.rendering import environment, inlined
from workers.pages.thumbnails import decoded, thumbnail
from workers.pages.wording import percent

PROMPT_CHARACTERS = 4000
_KEEP = {"cache-control": "private, max-age=3600"}  # an id is a hash: its picture never changes

Page = Callable[..., HTMLResponse]


class Pictures:
    """Pictures as a browser gets them; one that cannot be shown is reported."""

    def __init__(
        self, read: Callable[[str], bytes], check: Callable[[str], object],
        pass_over: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        """read: a picture's bytes by its id; raises ObjectNotFound.

        check: raises InputError for an id that the page does not have. pass_over: is told the id
        of a picture that cannot be shown, and why.
        """
        self._read, self._check, self._pass_over = read, check, pass_over
        self._reloaded: set[str] = set()  # pictures that were there though a browser had none

    def whole(self, id: str) -> Response:
        data = self._stored(id)
        image = decoded(data)
        return self._sent(id, data, image.get_format_mimetype() if image else None)

    def small(self, id: str) -> Response:
        data = self._stored(id)
        return self._sent(id, *(thumbnail(data) or (data, None)))

    def missed(self, ids: list[str]) -> Response | None:
        """Of these a browser has not all: they are gone, or the store was away for a moment.

        An answer that has the page load again, if that may help.
        """
        there = {id: self._stored(id) for id in ids}
        broken = [id for id in ids if not decoded(there[id])]
        if not broken and not self._reloaded.issuperset(ids):
            self._reloaded.update(ids)
            return Response(headers={"hx-refresh": "true"})
        for id in broken or ids:
            self._tell(id, there[id])
        return None

    def _stored(self, id: str) -> bytes:
        """Nothing if the store has no such picture any more."""
        self._check(id)
        try:
            return self._read(id)
        except ObjectNotFound:
            return b""

    def _tell(self, id: str, data: bytes) -> str:
        why = "is broken" if data else "is gone from the store"
        self._pass_over(id, why)
        return f"picture {id} {why}"

    def _sent(self, id: str, data: bytes, kind: str | None) -> Response:
        """kind: None for what is no whole picture."""
        if kind is None:
            raise ObjectNotFound(self._tell(id, data))
        return Response(data, media_type=kind, headers=_KEEP)


def templates_of(title: str, annotator: str, trouble: Callable[[], str]) -> Environment:
    """trouble: why the store lacks some of what was said, if it does."""
    templates = environment(PROMPT_CHARACTERS)
    templates.globals |= {
        "title": title,
        "annotator": annotator,
        "trouble": trouble,
        "percent": percent,
        "no_prompt": "The prompt is empty.",
    }
    return templates


def rendering(templates: Environment) -> Page:
    def page(name: str, **values: Any) -> HTMLResponse:
        return HTMLResponse(templates.get_template(name).render(**values))

    return page


def new_app(style: str, pictures: Pictures) -> FastAPI:
    """With pictures, and files: a style sheet of this name behind those that all pages share."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    files = {
        "style.css": (inlined("report.css", "desk.css", style), "text/css"),
        "desk.js": (inlined("desk.js"), "text/javascript"),
        "htmx.min.js": (inlined("htmx.min.js"), "text/javascript"),
    }

    @app.get("/files/{name}")
    def file(name: str) -> Response:
        if name not in files:
            raise InputError(f"no file {name!r}")
        text, kind = files[name]
        return Response(text, media_type=kind)

    @app.get("/images/{id}")
    def whole_image(id: Id) -> Response:
        return pictures.whole(id)

    @app.get("/thumbnails/{id}")
    def small_image(id: Id) -> Response:
        return pictures.small(id)

    @app.exception_handler(RequestValidationError)
    def malformed(request: Request, error: Exception) -> Response:
        return PlainTextResponse("This is no address of the page.\n", 400)

    @app.exception_handler(PpvError)
    def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, InputError | ObjectNotFound):
            return PlainTextResponse(f"{error}\n", 404)
        return PlainTextResponse(f"{error}\n", 503)

    return app

"""The labelling page over HTTP: each key is a POST, whose answer is what the page shows next."""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal
from urllib.parse import parse_qs

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from pipeline.labels import QUESTIONS, REASONS, Question, Said
from pipeline.types import Id
from workers.labelling.desk import LabelDesk, View
from workers.labelling.queue import Picture
from workers.people.app import Pictures, new_app, rendering, templates_of

DISPUTED = 200  # on one page

REASON_KEYS = dict(zip("1234567890", REASONS, strict=True))


def create_app(
    desk: LabelDesk,
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
    templates = templates_of(title, annotator, trouble)
    templates.filters["in_words"] = in_words
    templates.globals |= {"reason_keys": REASON_KEYS, "reasons": REASONS}
    page = rendering(templates)
    images = Pictures(image_of, desk.picture, desk.gone)
    app = new_app("label.css", images)

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
        """The browser has no picture."""
        return images.missed([id]) or shown(desk.view())

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

"""The comparing page over HTTP: each key is a POST, whose answer is what the page shows next."""

from collections.abc import Callable

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse

from pipeline.choices import ASKED, QUESTIONS, Answer, Question
from pipeline.types import Id
from workers.comparing.desk import ChoiceDesk, View
from workers.people.app import Pictures, new_app, rendering, templates_of


def create_app(
    desk: ChoiceDesk,
    read_image: Callable[[str, str], bytes],
    *,
    title: str,
    annotator: str,
    trouble: Callable[[], str],
) -> FastAPI:
    """read_image: a picture's bytes by its run and id; raises ObjectNotFound.

    trouble: why the store lacks some of what was said, if it does.
    """
    templates = templates_of(title, annotator, trouble)
    templates.globals["asked"] = ASKED
    page = rendering(templates)
    images = Pictures(lambda id: read_image(desk.run_of(id), id), desk.run_of, desk.picture_gone)
    app = new_app("compare.css", images)

    def shown(view: View) -> HTMLResponse:
        return page("compare_pair.html.j2", view=view)

    @app.get("/")
    def whole_page() -> HTMLResponse:
        return page("compare.html.j2", view=desk.view())

    @app.get("/next")
    def next_pair() -> HTMLResponse:
        return shown(desk.view())

    @app.post("/pairs/{id}/answers/{question}/{answer}")
    def answer(id: Id, question: Question, answer: Answer) -> HTMLResponse:
        desk.answer(id, question, answer)
        if question == QUESTIONS[-1] and desk.said(id).whole:
            return shown(desk.view())
        return shown(desk.view(id, after=question))

    @app.post("/pairs/{id}/skip")
    def skip(id: Id) -> HTMLResponse:
        desk.skip(id)
        return shown(desk.view())

    @app.post("/pairs/{id}/gone")
    def gone(id: Id) -> Response:
        """The browser lacks one of its pictures, or both."""
        return images.missed(desk.pictures_of(id)) or shown(desk.view())

    @app.post("/undo")
    def undo() -> HTMLResponse:
        ids = desk.undo()
        note = "" if ids else "There is nothing to take back."
        return shown(desk.view(ids[0] if ids else None, note))

    return app

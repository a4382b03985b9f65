"""The audit of what is pinned: it fails on a known hole, and says where it can tell none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"
HOLE = "PYSEC-2026-1"
KNOWN = "jinja2==2.10"  # of which every real index knows a hole
PINNED = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
(PILLOW,) = (line for line in PINNED if line.startswith("pillow=="))


def audit(index: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, AUDIT, "-s", "osv", f"--osv-url={index}"], capture_output=True, text=True
    )
    assert not done.stderr
    return done.returncode, done.stdout


def index_of(httpserver: HTTPServer, *holey: str) -> str:
    """The address of an index (OSV's protocol) that knows of a hole in each of these."""

    def answer(request: Request) -> Response:
        asked = json.loads(request.data)
        name, pin = asked["package"]["name"], f"{asked['package']['name']}=={asked['version']}"
        fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}
        package = {"name": name, "ecosystem": "PyPI"}
        hole = {
            "id": HOLE,
            "summary": "a hole",
            "affected": [{"package": package, "ranges": [fixed]}],
        }
        return Response(json.dumps({"vulns": [hole]} if pin in holey else {}))

    httpserver.expect_request("/v1/query").respond_with_handler(answer)
    return httpserver.url_for("/v1/query")


def test_a_known_hole_fails_and_is_named_with_what_mends_it(httpserver: HTTPServer) -> None:
    code, said = audit(index_of(httpserver, KNOWN, PILLOW))
    assert code == 1
    assert f"{PILLOW.replace('==', ' ')}: {HOLE}, mended in 99.1" in said
    assert "audit: 1 known holes" in said


def test_where_nothing_has_a_hole_the_audit_is_content(httpserver: HTTPServer) -> None:
    code, said = audit(index_of(httpserver, KNOWN))
    assert code == 0
    assert said.startswith("audit: 0 known holes in ")


@pytest.mark.parametrize("known", [True, False])
def test_an_index_that_knows_of_none_is_no_all_clear(httpserver: HTTPServer, known: bool) -> None:
    index = index_of(httpserver) if known else "http://127.0.0.1:1/v1/query"
    code, said = audit(index)
    assert code == 0
    assert said == "audit: no index of known holes can be asked here; nothing was audited\n"

"""The whole way on real services: Redis, S3 and one Celery worker a queue, with tiny models."""

import io
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import redis
from PIL import Image

from pipeline.types import Record
from storage.runs import RunFolder
from tests.place import Place, until
from tests.tiny import save_lora, save_tiny_pipeline, save_tiny_verifier
from workers.embedded import Embedded, services
from workers.settings import DispatchConfig, Settings

BASES = [f"a hand with a {color} {thing}" for color in ("red", "blue") for thing in ("mug", "bag")]
PER_BASE = 4 * 2  # 4 detailed prompts a base prompt and 2 images a prompt, as is the default
PROPOSALS = len(BASES) * PER_BASE
SLOW = 150  # sampler steps, so that a batch takes long enough to be killed in


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_pipeline(folder / "base", text_length=200)
    save_tiny_verifier(folder / "verifier")
    return folder


@pytest.fixture
def place(tmp_path: Path, models: Path) -> Iterator[Place]:
    place = Place(tmp_path, models, BASES)
    yield place
    place.clear()


@pytest.fixture
def slow_place(tmp_path: Path, models: Path) -> Iterator[Place]:
    place = Place(tmp_path, models, BASES, num_inference_steps=SLOW)
    yield place
    place.clear()


def test_a_run_leaves_one_record_a_proposal_and_a_second_run_nothing_to_do(place: Place) -> None:
    first = place.ppv("run", "bases.txt", "--run", "first", "--out", "out")
    assert first.code == 0, first.err
    status = place.status("first")
    assert (status["expected"], status["missing"], status["failed"]) == (PROPOSALS, 0, 0)
    _assert_whole(place.run_folder("first"))
    assert (place.folder / "out" / "report.html").exists()
    assert (place.folder / "out" / "dataset" / "README.md").exists()

    before = _snapshot(place.run_folder("first"))
    second = place.ppv("run", "bases.txt", "--run", "first", "--out", "out")
    assert second.code == 0
    assert "everything was done already" in second.err
    assert _snapshot(place.run_folder("first")) == before

    record = _records(place.run_folder("first"))[0]
    again = place.ppv("reproduce", "first", record.id[:12])
    assert again.code == 0, again.err
    more = place.ppv("run", "-", "--run", "first", "--out", "out", stdin="a pen\na red mug\n")
    assert more.code == 0, more.err
    assert place.status("first")["expected"] == PROPOSALS + 2 * PER_BASE
    assert place.status("first")["missing"] == 0

    other = place.ppv("run", "bases.txt", "--run", "first", "--set", "proposer.batch_size=5")
    assert other.code == 2
    assert "proposer.batch_size is 4 there and 5 now" in other.err
    assert not place.processes("rclone"), "an embedded service outlived its command"


def test_a_specialist_draws_its_category_on_any_machine_that_reaches_the_store(
    place: Place, models: Path, tmp_path: Path
) -> None:
    lora = save_lora(models / "base", tmp_path / "lora") / "pytorch_lora_weights.safetensors"
    added = place.ppv("models", "add", lora, "--name", "mine", "--token", "sks")
    assert added.code == 0, added.err
    reference = added.out.split()[-1]
    lora.unlink()
    route = 'proposer.route={"base": 1, "pinch": 1}'
    setting = ("--set", route, "--set", f"proposer.specialists.pinch={reference}")
    done = place.ppv("run", "-", "--run", "two", "--out", "out", *setting, stdin="a red key\n")
    assert done.code == 0, done.err
    records = _records(place.run_folder("two"))
    by_label = {each.proposal.proposer.label: each for each in records}
    assert (len(records), sorted(by_label)) == (PER_BASE, ["base", "mine"])
    adapter = by_label["mine"].proposal.proposer.adapter
    assert adapter is not None
    assert f"{adapter.name}@{adapter.version}" == reference
    shutil.rmtree(place.folder / ".ppv" / "models")
    again = place.ppv("reproduce", "two", by_label["mine"].id)
    assert "the same pixels" in again.out, again.err
    wrong = place.ppv("run", "-", "--run", "three", *setting[:2], stdin="a key\n")
    assert wrong.code == 2
    assert "was trained on 'miniature'" in wrong.err, wrong.err


def test_a_run_outlives_kill_9_of_every_worker(slow_place: Place) -> None:
    place = slow_place
    running = place.start("run", "bases.txt", "--run", "killed", "--out", "out")
    folder = place.run_folder("killed")
    for queue, sign in (("prompt", "prompts"), ("propose", "images"), ("verify", "records")):
        until(lambda sign=sign: _objects(place, "killed", sign), f"{sign} of the run")
        victims = place.processes(f"--queues={queue}")
        assert victims, f"no worker for {queue}"
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
    ended = place.end(running)
    assert ended.code == 0, ended.err
    status = place.status("killed")
    assert (status["expected"], status["missing"], status["failed"]) == (PROPOSALS, 0, 0)
    _assert_whole(folder)


def test_a_run_outlives_kill_9_of_redis_and_of_the_s3_server(slow_place: Place) -> None:
    place = slow_place
    running = place.start("run", "bases.txt", "--run", "services", "--out", "out")
    for name, sign in (("redis-server", "images"), ("rclone", "records")):
        until(lambda sign=sign: _objects(place, "services", sign), f"{sign} of the run")
        (victim,) = place.processes(name)
        os.kill(victim, signal.SIGKILL)
    ended = place.end(running)
    assert ended.code == 0, ended.err
    _assert_whole(place.run_folder("services"))


def test_ctrl_c_leaves_no_process_and_resume_finishes_from_the_store_alone(
    slow_place: Place,
) -> None:
    place = slow_place
    running = place.start("run", "bases.txt", "--run", "stopped", "--out", "out")
    until(lambda: _objects(place, "stopped", "prompts"), "a first prompt")
    _assert_passwords_are_not_in_arguments(place)
    until(lambda: _objects(place, "stopped", "images"), "a first picture")
    running.send_signal(signal.SIGINT)
    assert place.end(running).code == 130
    until(lambda: not place.processes(), "all children ended", deadline_s=10)
    assert place.status("stopped")["missing"] > 0

    # The embedded Redis begins empty, so nothing but the store knows what is missing.
    resumed = place.ppv("resume", "stopped", "--out", "out")
    assert resumed.code == 0, resumed.err
    _assert_whole(place.run_folder("stopped"))


def test_children_end_with_a_parent_that_is_killed(slow_place: Place) -> None:
    place = slow_place
    running = place.start("run", "bases.txt", "--run", "orphaned")
    until(lambda: _objects(place, "orphaned", "images"), "a first picture")
    running.kill()
    running.communicate()
    until(lambda: not place.processes(), "all children ended", deadline_s=10)


def test_a_cancelled_run_stops_and_resumes(slow_place: Place) -> None:
    place = slow_place
    running = place.start("run", "bases.txt", "--run", "cancelled", "--out", "out")
    until(lambda: _objects(place, "cancelled", "images"), "a first picture")
    assert place.ppv("cancel", "cancelled").code == 0
    ended = place.end(running)
    assert ended.code == 1
    assert "was cancelled" in ended.err
    assert place.status("cancelled")["missing"] > 0
    assert place.ppv("resume", "cancelled", "--out", "out").code == 0
    _assert_whole(place.run_folder("cancelled"))


def test_bad_items_are_recorded_and_the_rest_goes_on(tmp_path: Path, models: Path) -> None:
    """A base prompt that nobody can describe, a repeated one, and one on which workers die."""
    place = Place(tmp_path, models, ["a red mug", "a violin", "a blue key", "a red mug"])
    with services(Settings(state_dir=tmp_path / ".ppv")):
        deadly = place.spawn(
            sys.executable, "-m", "celery", "-A", "tests.deadly", "worker", "-Q", "propose"
        )
        try:
            until(lambda: place.ppv("doctor").code == 0, "services")
            one_each = ("--set=prompter.prompts_per_base=1", "--set=proposer.images_per_prompt=1")
            ended = place.ppv("run", "bases.txt", "--run", "bad", "--out", "out", *one_each)
        finally:
            deadly.terminate()
            deadly.communicate(timeout=60)
    assert ended.code == 1
    assert "1 duplicate base prompts were done once" in ended.err
    assert "violin" in ended.err
    assert "names neither an object nor a category" in ended.err
    assert "workers died" in ended.err
    status = place.status("bad")
    assert status["missing"] == 0
    assert (status["expected"], status["failed"]) == (3, 2)
    assert status["accepted"] == 1  # the mug, though a key was in the same message


def test_flower_asks_for_a_login_and_names_tasks_readably(place: Place) -> None:
    port = _free_port()
    up = place.start("up", "--flower-port", str(port))
    url = f"http://127.0.0.1:{port}"
    stack = ExitStack()
    try:
        until(lambda: _answers(url), "Flower")
        password = (place.folder / ".ppv" / "flower-password").read_text()
        assert httpx.get(f"{url}/workers").status_code == 401
        assert httpx.get(f"{url}/workers", auth=("ppv", "wrong")).status_code == 401
        login = stack.enter_context(httpx.Client(base_url=url, auth=("ppv", password), timeout=20))
        until(lambda: len(login.get("/api/workers?refresh=1").json()) == 3, "three workers")

        assert place.ppv("enqueue", "bases.txt", "--run", "shown").code == 0
        until(lambda: place.status("shown")["finished"], "the run")
        until(lambda: len(login.get("/api/tasks").json()) >= 3, "tasks")
        tasks = login.get("/api/tasks").json().values()
        assert {task["name"] for task in tasks} == {"prompt", "propose", "verify"}
        shown = {task["args"] for task in tasks if task["name"] == "propose"}
        assert all(args.startswith("shown: 4 proposals, ") for args in shown)
    finally:
        stack.close()
        up.send_signal(signal.SIGINT)
        assert place.end(up).code == 130
    until(lambda: not place.processes(), "all children ended", deadline_s=10)


def test_enqueueing_fills_redis_only_up_to_the_window(tmp_path: Path, models: Path) -> None:
    place = Place(tmp_path, models, [f"a hand with a mug, number {n}" for n in range(2000)])
    with services(Settings(state_dir=tmp_path / ".ppv")), ExitStack() as stack:
        embedded = Embedded.model_validate_json((tmp_path / ".ppv" / "embedded.json").read_text())
        queues = stack.enter_context(redis.Redis.from_url(embedded.redis_url))
        feeding = place.start("enqueue", "bases.txt", "--run", "window")
        full = DispatchConfig().in_flight // (16 * PER_BASE)  # messages of 16 base prompts
        until(lambda: queues.llen("prompt") == full, "a full window")
        time.sleep(1)
        assert queues.llen("prompt") == full
        assert len(list(place.run_folder("window").inputs())) == full + 1  # one is in hand
        message = json.loads(queues.lindex("prompt", 0))
        assert message["content-type"] == "application/json"
        assert embedded.s3_secret_key not in json.dumps(message)
        feeding.kill()
        feeding.communicate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code > 0
    except httpx.TransportError:
        return False


def _objects(place: Place, run: str, kind: str) -> list[Path]:
    return list((place.folder / ".ppv" / "s3" / "ppv" / "runs" / run / kind).glob("*"))


def _snapshot(folder: RunFolder) -> dict[str, bytes]:
    return {key: folder.store.get(key) for key in folder.store.list("runs/")}


def _records(folder: RunFolder) -> list[Record]:
    """Every line of every record object: nothing is counted once that was written twice."""
    return [record for batch in folder.record_batches() for record in folder.records_of(batch)]


def _assert_passwords_are_not_in_arguments(place: Place) -> None:
    embedded = Embedded.model_validate_json((place.folder / ".ppv" / "embedded.json").read_text())
    for secret in (embedded.redis_password, embedded.s3_secret_key):
        assert not place.processes(secret)
    assert (place.folder / ".ppv" / "embedded.json").stat().st_mode & 0o077 == 0


def test_what_embedded_services_keep_is_shut_even_in_an_open_folder(tmp_path: Path) -> None:
    (state := tmp_path / ".ppv").mkdir(mode=0o755)
    with services(Settings(state_dir=state)):
        for kept in ("s3", "redis", "logs", "embedded.json"):
            assert (state / kept).stat().st_mode & 0o077 == 0, kept


def _assert_whole(folder: RunFolder) -> None:
    """Exactly one record for each expected proposal, and every picture opens and is the one."""
    ids = Counter(record.id for record in _records(folder))
    assert len(ids) == PROPOSALS
    assert set(ids.values()) == {1}
    for proposal_id in ids:
        with Image.open(io.BytesIO(folder.read_image(proposal_id))) as image:
            image.load()
            assert image.size == (32, 32)

"""Freezing a dataset from a run that is made up as it is read: records a second, and peak memory.

    python -m bench.dataset [--records 10000 100000] [--compare] [--json FILE]

Each size is frozen by a process of its own into a folder on disk. Records are parsed, chosen and
written as ever; a picture is 48x48 pixels of noise, 7 KB, and costs about 0.2 ms to make, twice.
--compare looks for near duplicates, too.
"""

import argparse
import hashlib
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.config import PrompterConfig, ProposerConfig, Run, VerifierConfig
from pipeline.prompter.instructions import load_instructions
from pipeline.taxonomy import load_taxonomy
from pipeline.types import (
    ClauseScore,
    DetailedPrompt,
    ModelRef,
    PrompterRef,
    Proposal,
    ProposerRef,
    Record,
    Sampler,
    Thresholds,
    Verdict,
)
from storage.datasets import Choice
from storage.folder import FolderStore
from storage.freezing import SHARD_BYTES, freeze
from storage.objects import ObjectNotFound

RUN = "imagined"
PER_BATCH, PER_BASE = 64, 8
CATEGORIES = ("power", "pinch", "tripod", "lateral", "hook", "platform")
OBJECTS = 13
PIXELS = 48
_MODEL = ModelRef(name="imagined", weights="sha256:" + "0" * 64)


class ImaginedStore(FolderStore):
    """A folder that also holds a run of so many accepted records, made anew for each reader."""

    def __init__(self, folder: Path, records: int) -> None:
        super().__init__(folder)
        self._records = records

    def folders(self, key: str) -> Iterator[str]:
        yield from [RUN] if key == "runs" else super().folders(key)

    def exists(self, key: str) -> bool:
        return key == f"runs/{RUN}/run.json" or super().exists(key)

    def list(self, prefix: str) -> Iterator[str]:
        per = {"records": PER_BATCH, "images": 1, "prompts": PER_BASE}
        kind = prefix.split("/")[2] if prefix.startswith(f"runs/{RUN}/") else ""
        if kind in per:
            yield from (f"{prefix}{n:032x}.x" for n in range(-(-self._records // per[kind])))
        elif not kind:
            yield from super().list(prefix)

    def get(self, key: str) -> bytes:
        if not key.startswith(f"runs/{RUN}/"):
            return super().get(key)
        kind, _, name = key.removeprefix(f"runs/{RUN}/").partition("/")
        if kind == "run.json":
            return _run(-(-self._records // PER_BASE)).model_dump_json().encode()
        number = int(name.partition(".")[0], 16)
        if kind == "images":
            return picture(number)
        if kind == "records":
            first = number * PER_BATCH
            last = min(first + PER_BATCH, self._records)
            return "".join(f"{record_line(n)}\n" for n in range(first, last)).encode()
        raise ObjectNotFound(f"no object {key!r}")


def picture(number: int) -> bytes:
    """Noise, as PNG without compression; another one for each number."""
    noise = hashlib.shake_128(str(number).encode()).digest(3 * PIXELS**2)
    file = io.BytesIO()
    Image.frombytes("RGB", (PIXELS, PIXELS), noise).save(file, "PNG", compress_level=0)
    return file.getvalue()


def record_line(number: int) -> str:
    """An accepted record as JSON, by its number."""
    values = {
        "0" * 32: f"{number:032x}",
        "0" * 64: hashlib.sha256(picture(number)).hexdigest(),
        "a base prompt": f"a base prompt, number {number // PER_BASE}",
        "a category": CATEGORIES[number // PER_BASE % len(CATEGORIES)],
        "an object": f"object {number // PER_BASE % OBJECTS}",
    }
    line = _template()
    for of_template, own in values.items():
        line = line.replace(f'"{of_template}"', f'"{own}"')
    return line


@cache
def _template() -> str:
    text = "a hand that holds a red mug by its handle, with four fingers through it, on a table"
    prompt = DetailedPrompt(
        id="1" * 32,
        base="a base prompt",
        index=0,
        text=text,
        category="a category",
        attributes={"object": "an object", "color": "red"},
    )
    proposer = ProposerRef.of(_MODEL)
    thresholds = Thresholds()
    return Record(
        id="0" * 32,
        run=RUN,
        proposal=Proposal(prompt=prompt, proposer=proposer, seed=7, sampler=Sampler()),
        image="images/x.png",
        image_sha256="0" * 64,
        prompter=PrompterRef(name="grammar", taxonomy="2" * 32, instructions="3" * 32),
        verifier=_MODEL,
        verdict=Verdict(
            fidelity=0.8,
            alignment=0.9,
            clauses=(ClauseScore(text=text, fidelity=0.8, alignment=0.9),),
            thresholds=thresholds,
        ),
    ).model_dump_json()


def _run(base_prompts: int) -> Run:
    return Run(
        name=RUN,
        prompter=PrompterConfig(prompts_per_base=PER_BASE),
        taxonomy=load_taxonomy("miniature"),
        instructions=load_instructions("default"),
        proposer=ProposerConfig(images_per_prompt=1),
        proposers=(ProposerRef.of(_MODEL),),
        verifier=VerifierConfig(),
        verifier_ref=_MODEL,
        versions={},
        created_at="2026-11-24T00:00:00+00:00",
        base_prompts=base_prompts,
    )


def measure(records: int, compare: bool, shard_bytes: int = SHARD_BYTES) -> dict[str, float]:
    """Freezes so many records, in this process."""
    choice = Choice(near_duplicates=24 if compare else None)
    with TemporaryDirectory() as folder:
        store = ImaginedStore(Path(folder) / "store", records)
        began = time.perf_counter()
        scratch = Path(folder) / "scratch"
        manifest, _ = freeze(store, "imagined", [RUN], choice, scratch, shard_bytes=shard_bytes)
        seconds = time.perf_counter() - began
    return {
        "records": records,
        "compared": compare,
        "pictures": sum(manifest.pictures.values()),
        "seconds": round(seconds, 2),
        "records_per_s": round(records / seconds, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "dataset_mb": round(manifest.bytes / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--compare", action="store_true", help="look for near duplicates")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.records[0], args.compare)))
        return
    compare = ["--compare"] if args.compare else []
    results = []
    for records in args.records:
        command = [sys.executable, "-m", "bench.dataset", "--here", "--records", str(records)]
        done = subprocess.run([*command, *compare], check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout))
    table = Table("records", "near duplicates", "seconds", "records/s", "peak MB", "dataset MB")
    for each in results:
        compared = "looked for" if each["compared"] else "not looked for"
        numbers = (each[name] for name in ("seconds", "records_per_s", "peak_mb", "dataset_mb"))
        table.add_row(f"{each['records']:,}", compared, *map(str, numbers))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()

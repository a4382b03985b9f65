"""Known holes in what constraints.txt pins, by pip-audit: exit code 1 if there are any.

    python .ci/audit.py [OPTIONS OF PIP-AUDIT]

Where no index answers that knows of holes, it says so in one line and lets the rest go on.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
HOLEY = "jinja2==2.10"  # whoever knows of no hole in this one knows of none


def main() -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as probe:
        probe.write(HOLEY)
        probe.flush()
        if not holes(audited(Path(probe.name))):
            print("audit: no index of known holes can be asked here; nothing was audited")
            return
    found = audited(CONSTRAINTS)
    unknown = [each["name"] for each in found if "skip_reason" in each]
    if not found or len(unknown) == len(found):
        print("audit: the index of known holes went away; nothing was audited")
        return
    if unknown:
        print(f"audit: not known to the index, so not audited: {', '.join(unknown)}")
    for line in holes(found):
        print(f"audit: {line}")
    print(f"audit: {len(holes(found))} known holes in {len(found) - len(unknown)} packages")
    sys.exit(1 if holes(found) else 0)


def audited(requirements: Path) -> list[dict[str, Any]]:
    """What pip-audit says of each pinned package; nothing where the index cannot be asked."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--format=json"]
    command += ["--progress-spinner=off", "--timeout=15", f"--requirement={requirements}"]
    done = subprocess.run([*command, *sys.argv[1:]], capture_output=True, text=True)
    try:
        dependencies: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        return []
    return dependencies


def holes(found: list[dict[str, Any]]) -> list[str]:
    return [
        f"{each['name']} {each['version']}: {hole['id']}, mended in "
        f"{', '.join(hole['fix_versions']) or 'no version yet'}"
        for each in found
        for hole in each.get("vulns", ())
    ]


if __name__ == "__main__":
    main()

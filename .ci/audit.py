"""Known vulnerabilities of the locked dependencies, as pip-audit finds them.

    python .ci/audit.py requirements-lock.txt

Ends with status 1 if a dependency has one, which is listed with the version that has it fixed. Ends
with status 0 if the database cannot be reached, and says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

AUDIT = ("pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner", "off")


def summarize(report: dict[str, Any]) -> tuple[list[str], int]:
    """The lines to print about a report of pip-audit (--format json), and the exit status."""
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in "
        f"{', '.join(found['fix_versions']) or 'no version yet'}"
        for package in packages
        for found in package.get("vulns", ())
    ]
    checked = len(packages) - len(skipped)
    if not checked:
        return ["nothing was checked: the database cannot be reached"], 0
    summary = f"{checked} of {len(packages)} packages checked, {len(lines)} known vulnerabilities"
    if skipped:
        summary += f"; not in the database, or it cannot be reached: {', '.join(skipped)}"
    return [*lines, summary], int(bool(lines))


def main(file: str) -> int:
    command = [sys.executable, "-m", *AUDIT, "--format", "json", "-r", file]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        lines, status = summarize(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        lines, status = [f"not audited: {reason}"], 0
    print(*lines, sep="\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))

"""Search the packages of the lock files for known vulnerabilities, with pip-audit.

The exit code is 1 if a package has a vulnerability. Otherwise, it is 75 if some packages could not be checked, because
the advisory service does not respond, or does not know these packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

EXIT_VULNERABLE: Final = 1
EXIT_TEMPORARY: Final = 75
_LOCKS: Final = Path(__file__).parents[1] / "locks"
_TIMEOUT_S: Final = 600.0
_SHOWN: Final = 5  # packages that are named if they were not checked


def ask(lock: Path) -> Mapping[str, Any] | None:
    """Return the report of pip-audit about a lock file. Return None if the advisory service does not respond."""
    command = ["pip-audit", "--requirement", str(lock), "--require-hashes", "--disable-pip", "--progress-spinner=off"]
    try:
        done = subprocess.run(
            [*command, "--format=json"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return None
    try:
        report: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        print((done.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1][:300], file=sys.stderr)
        return None
    return report


def audit(name: str, report: Mapping[str, Any] | None) -> int:
    """Print the vulnerabilities and the unchecked packages of a lock file. Return the exit code.

    Args:
        name: name of the lock file.
        report: report of pip-audit about the lock file, or None if there is no report.
    """
    if report is None:
        print(f"{name}: not checked, because the advisory service does not answer")
        return EXIT_TEMPORARY
    packages = report["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [(package, vulnerability) for package in packages for vulnerability in package.get("vulns", ())]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"{name}: {package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    checked = len(packages) - len(skipped)
    print(f"{name}: {checked} packages checked, {len(found)} vulnerabilities")
    if skipped:
        some = ", ".join(skipped[:_SHOWN]) + (", ..." if len(skipped) > _SHOWN else "")
        print(f"{name}: {len(skipped)} packages not checked, because the advisory service does not know them: {some}")
    if found:
        return EXIT_VULNERABLE
    return EXIT_TEMPORARY if skipped or not packages else 0


def main() -> int:
    """Check all lock files. Return the exit code."""
    codes = {audit(lock.name, ask(lock)) for lock in sorted(_LOCKS.glob("*.txt"))}
    return EXIT_VULNERABLE if EXIT_VULNERABLE in codes else max(codes, default=EXIT_TEMPORARY)


if __name__ == "__main__":
    sys.exit(main())

"""The lock of dependencies, the notice of their licences, and the check for known vulnerabilities."""

import json
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from docs import check_vulnerabilities, make_lock, make_notice
from tests.conftest import REPOSITORY

LOCKED_FOR = {"python_version": "3.11", "sys_platform": "linux"}


def pinned(name: str) -> dict[str, str]:
    """The versions in a requirements file, and in those that it includes, where the lock is for."""
    versions: dict[str, str] = {}
    for line in (REPOSITORY / name).read_text().splitlines():
        words = line.partition("#")[0].strip()
        if words.startswith("-r "):
            versions |= pinned(words.removeprefix("-r "))
        elif words and ((pin := Requirement(words)).marker is None or pin.marker.evaluate(LOCKED_FOR)):
            versions[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    return versions


def test_the_lock_holds_what_is_pinned() -> None:
    """If it does not, run `python -m docs.make_lock`."""
    expected: dict[str, str] = {}
    for file in make_lock.REQUIREMENTS:
        expected |= pinned(file)
    assert make_lock.locked() == expected


def test_the_lock_is_made_of_the_report_of_pip() -> None:
    file = {"archive_info": {"hashes": {"sha256": "ab"}}}
    packages = [{"metadata": {"name": name, "version": "1.0"}, "download_info": file} for name in ("Zed_Zed", "alpha")]
    lines = make_lock.lock({"install": packages}).splitlines()
    assert lines[1:] == ["alpha==1.0 --hash=sha256:ab", "zed-zed==1.0 --hash=sha256:ab"]


@pytest.mark.slow
@pytest.mark.skipif(
    (sys.version_info[:2], platform.system(), platform.machine()) != ((3, 11), "Linux", "x86_64"),
    reason="the lock is for Python 3.11 on Linux, x86-64",
)
def test_pip_installs_by_hashes() -> None:
    words = ["--dry-run", "--ignore-installed", "--require-hashes", "--quiet", "-r", str(make_lock.LOCK)]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_notice_names_the_licences_of_all_packages() -> None:
    """If it does not, run `python -m docs.make_notice`."""
    assert make_notice.NOTICE.read_text() == make_notice.notice()


def vulnerability(name: str, **affected: Any) -> dict[str, Any]:
    return {"id": "OSV-1", "summary": "bad", "affected": [{"package": {"ecosystem": "PyPI", "name": name}, **affected}]}


def ecosystem(*events: dict[str, str]) -> dict[str, Any]:
    return {"ranges": [{"type": "ECOSYSTEM", "events": list(events)}]}


@pytest.mark.parametrize(
    ("affected", "is_found"),
    [
        ({"versions": ["2.0", "2.1"]}, True),
        ({"versions": ["2.0"]}, False),
        (ecosystem({"introduced": "0"}, {"fixed": "2.1"}), False),
        (ecosystem({"introduced": "0"}, {"fixed": "2.1.1"}), True),
        (ecosystem({"introduced": "2.1"}, {"last_affected": "2.1"}), True),
        (ecosystem({"introduced": "0"}, {"fixed": "1"}, {"introduced": "2"}, {"fixed": "3"}), True),
        (ecosystem({"introduced": "2.2"}), False),
        ({"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}, False),
    ],
)
def test_a_vulnerability_concerns_the_versions_that_it_names(affected: dict[str, Any], is_found: bool) -> None:
    entry = vulnerability("Some_Package", **affected)
    lines = list(check_vulnerabilities.concerned(entry, {"some-package": "2.1"}))
    assert lines == ["some-package 2.1: OSV-1 bad"] * is_found
    assert not list(check_vulnerabilities.concerned(entry, {"other": "2.1"}))
    assert not list(check_vulnerabilities.concerned({**entry, "withdrawn": "2026"}, {"some-package": "2.1"}))


def test_versions_that_are_none_are_after_all() -> None:
    assert check_vulnerabilities.order("0") < Version("0.0.1a1") < check_vulnerabilities.order("unreleased")


@pytest.mark.parametrize(
    ("affected", "code", "printed"),
    [(ecosystem({"introduced": "0"}), 1, "numpy "), ({"versions": ["0.1"]}, 0, "none of 1 vulnerabilities")],
)
def test_the_check_reads_an_export(
    affected: dict[str, Any], code: int, printed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("1.json", json.dumps(vulnerability("numpy", **affected)))
    with pytest.raises(SystemExit) as ended:
        check_vulnerabilities.main(path)
    assert ended.value.code == code and capsys.readouterr().out.startswith(printed)


def test_what_is_no_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        check_vulnerabilities.main(tmp_path / "all.zip")
    assert ended.value.code == 2 and "all.zip is no export" in capsys.readouterr().err

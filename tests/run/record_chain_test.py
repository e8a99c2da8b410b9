"""Records that were edited, cut or lost are noticed; what a run does itself is not."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.run import record_chain
from alexnet_jax.run.metrics_log import MetricWriter, find_fault, read_metrics


def write(workdir: Path, *positions: int, opened_at: int = 0) -> str:
    """Writes a record for each position; returns the digest of the last."""
    with MetricWriter(workdir, opened_at) as writer:
        for position in positions:
            writer.write("step", position, {"loss": 0.1 + 0.2 * position, "reason": "“due”"})
        return writer.digest


def lines_of(workdir: Path) -> list[str]:
    return (workdir / "metrics.jsonl").read_text().splitlines()


def rewrite(workdir: Path, lines: list[str]) -> None:
    (workdir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_the_digest_is_the_one_that_the_module_tells(tmp_path: Path) -> None:
    last = write(tmp_path, 10, 20)
    first, second = lines_of(tmp_path)
    before = hashlib.sha256(b'{"kind": "step", "examples_seen": 10, "loss": 2.1, "reason": "\\u201cdue\\u201d"}')
    text = '{"kind": "step", "examples_seen": 20, "loss": 4.1, "reason": "\\u201cdue\\u201d"}'
    assert json.loads(first)["digest"] == before.hexdigest()[:16]
    after = hashlib.sha256((before.hexdigest()[:16] + text).encode()).hexdigest()[:16]
    assert second == f'{text[:-1]}, "digest": "{after}"}}' and last == after
    assert all("digest" not in record for record in read_metrics(tmp_path))


Damage = Callable[[list[str]], list[str]]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "edited": (lambda lines: [lines[0], lines[1].replace("4.1", "1.1"), *lines[2:]], "line 2 was edited"),
    "lost": (lambda lines: [lines[0], *lines[2:]], "line 2 was edited"),
    "first lost": (lambda lines: lines[1:], "line 1 was edited"),
    "repeated": (lambda lines: [*lines[:2], *lines[1:]], "line 3 was edited"),
    "swapped": (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "line 2 was edited"),
    "its digest edited": (lambda lines: [lines[0], lines[1][:-3] + '-"}', *lines[2:]], "line 2 was edited"),
    "its digest gone": (lambda lines: [*lines[:3], lines[3].rpartition(", ")[0] + "}"], "line 4 was edited"),
    "the last lost": (lambda lines: lines[:3], "after line 3 were lost"),
    "all lost": (lambda lines: [], "after line 0 were lost"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_with_its_line(tmp_path: Path, damage: str) -> None:
    last = write(tmp_path, 10, 20, 30, 40)
    assert find_fault(tmp_path, last) == ""
    change, expected = DAMAGES[damage]
    rewrite(tmp_path, change(lines_of(tmp_path)))
    assert expected in find_fault(tmp_path, last)


def test_what_a_resumed_run_drops_and_adds_is_in_order(tmp_path: Path) -> None:
    at_the_checkpoint = write(tmp_path, 10, 20)
    write(tmp_path, 30, 40, opened_at=20)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "exam')  # cut short by a kill
    assert find_fault(tmp_path, at_the_checkpoint) == ""
    whole = lines_of(tmp_path)[:4]
    write(tmp_path, 30, 40, opened_at=20)
    assert find_fault(tmp_path, at_the_checkpoint) == "" and lines_of(tmp_path) == whole


def test_records_without_digests_are_continued_and_protected_from_then_on(tmp_path: Path) -> None:
    rewrite(tmp_path, [json.dumps({"kind": "step", "examples_seen": seen}) for seen in (10, 20)])
    assert find_fault(tmp_path, "") == ""
    last = write(tmp_path, 30, 40, opened_at=20)
    assert find_fault(tmp_path, last) == "" and len(read_metrics(tmp_path)) == 4
    rewrite(tmp_path, lines_of(tmp_path)[1:])
    assert "line 2 was edited" in find_fault(tmp_path, last)


def test_a_broken_chain_is_continued_from_its_last_record(tmp_path: Path) -> None:
    """Else each later line would be as wrong as the edited one."""
    write(tmp_path, 10, 20)
    rewrite(tmp_path, lines_of(tmp_path)[1:])
    before = json.loads(lines_of(tmp_path)[-1])["digest"]
    assert record_chain.last_digest(lines_of(tmp_path)) == before
    last = write(tmp_path, 30, opened_at=20)
    text = lines_of(tmp_path)[-1].rpartition(", ")[0] + "}"
    assert record_chain.link(text, before)[1] == last


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    write(tmp_path, 10, 20)
    rewrite(tmp_path, [lines_of(tmp_path)[0], "{", lines_of(tmp_path)[1]])
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("change", ["removed", "replaced"])
@pytest.mark.parametrize("when", ["before a record", "at the end"])
def test_a_folder_that_vanishes_is_an_error(tmp_path: Path, change: str, when: str) -> None:
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=r"run/metrics\.jsonl was removed or replaced"):  # noqa: SIM117
        with MetricWriter(workdir, 0) as writer:
            writer.write("step", 10, {})
            workdir.rename(tmp_path / "elsewhere")
            if change == "replaced":
                workdir.mkdir()
                (workdir / "metrics.jsonl").touch()
            if when == "before a record":
                writer.write("step", 20, {})

"""The proof that a run used every image once an epoch, and that it notices when it did not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.checkpoint import Checkpoints
from alexnet_jax.cli import audit as program
from alexnet_jax.data import loader
from alexnet_jax.data.loader import TrainSource
from alexnet_jax.data.storage import InMemoryRecords
from alexnet_jax.errors import AuditFailedError, UserError
from alexnet_jax.run import audit
from alexnet_jax.run.metrics_log import MetricWriter, read_metrics
from alexnet_jax.train import train_and_evaluate
from tests.helpers.pictures import make_folder

MakeConfig = Callable[..., ConfigDict]


@pytest.mark.parametrize("cut", [0, 1, 37, 100])
def test_the_hash_does_not_depend_on_where_batches_end(cut: int) -> None:
    epochs, ids = audit.presentations(size=30, seed=0, begin=17, end=117)
    whole = audit.chain("", epochs, ids)
    assert audit.chain(audit.chain("", epochs[:cut], ids[:cut]), epochs[cut:], ids[cut:]) == whole


@pytest.mark.parametrize("change", ["swapped", "twice", "missing", "other epoch"])
def test_the_hash_notices_every_change(change: str) -> None:
    epochs, ids = audit.presentations(size=30, seed=0, begin=0, end=30)
    before = audit.chain("", epochs, ids)
    match change:
        case "swapped":
            ids[[3, 4]] = ids[[4, 3]]
        case "twice":
            ids[3] = ids[4]
        case "missing":
            epochs, ids = np.delete(epochs, 3), np.delete(ids, 3)
        case "other epoch":
            epochs[3] += 1
    assert audit.chain("", epochs, ids) != before


def test_the_hash_is_the_one_that_its_docstring_tells() -> None:
    from hashlib import sha256

    first = sha256(b"\x02\0\0\0\x07\0\0\0").digest()
    assert audit.chain("", np.array([2, 2]), np.array([7, 256])) == sha256(first + b"\x02\0\0\0\0\x01\0\0").hexdigest()


def test_presentations_are_those_of_training() -> None:
    order = loader.training_order(13, batch_size=5, seed=3, start_example=10)
    batches = [next(order) for _ in range(8)]
    epochs, ids = audit.presentations(size=13, seed=3, begin=10, end=50)
    np.testing.assert_array_equal(epochs, np.concatenate([batch["epoch"] for batch in batches]))
    np.testing.assert_array_equal(ids, np.concatenate([batch["id"] for batch in batches]))


def test_balanced_sampling_is_audited_by_the_labels_in_the_record() -> None:
    labels = np.array([0] * 9 + [1] * 2, np.int32)
    records = InMemoryRecords(np.zeros((11, 1, 1, 3), np.uint8), labels)
    start = {"kind": "start", **audit.start(5, TrainSource(records, "host", None, 1, labels))}
    batch = next(loader.training_order(11, batch_size=22, seed=5, start_example=0, balanced=labels))
    used = audit.chain("", batch["epoch"], batch["id"])
    epoch = {"kind": "epoch", "examples_seen": 22, "epoch": 2.0, "ids_sha256": used}
    as_recorded = json.loads(json.dumps([start, epoch]))
    assert [stretch.is_right for stretch in audit.check(as_recorded)] == [True]
    assert [stretch.is_right for stretch in audit.check([{**start, "labels": [0] * 10 + [1]}, epoch])] == [False]
    for damaged in ([0, 1], "labels", [None] * 11):
        with pytest.raises(UserError, match="labels"):
            list(audit.check([{**start, "labels": damaged}, epoch]))


def run(workdir: Path, make_config: MakeConfig, **changes: Any) -> None:
    settings = {"data.synthetic_examples": 101, "batch_size": 8, "epochs": 4.0, "max_steps": 0}
    train_and_evaluate(make_config("synthetic,lenet", **settings | changes), workdir)


@pytest.mark.slow
def test_a_run_on_one_then_two_then_one_device_with_other_batches(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted in the middle of epochs each time."""
    run(tmp_path, make_config, max_steps=20, **{"parallel.num_devices": 1})  # 160 images
    run(tmp_path, make_config, max_steps=14, batch_size=16, **{"parallel.num_devices": 2})  # 224
    run(tmp_path, make_config, max_steps=35, batch_size=8, **{"parallel.num_devices": 2, "parallel.micro_batches": 2})
    run(tmp_path, make_config, batch_size=4, **{"parallel.num_devices": 1})  # to the end
    shown = capsys.readouterr().out
    assert "config.batch_size: 16 -> 8 from here on" in shown
    program.main([str(tmp_path)])
    assert (
        "4 whole epochs: each used each of 101 images exactly once, in the order of seed 0" in capsys.readouterr().out
    )
    epochs = [record["epoch"] for record in read_metrics(tmp_path) if record["kind"] == "epoch"]
    assert len(epochs) == len(set(epochs)) >= 4 + 3  # an evaluation at each end of a stretch too


@pytest.mark.slow
def test_balanced_and_weighted_classes_on_one_device_or_two(
    tmp_path: Path, make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Interrupted or not, from disk or from the device: the same images, and the same bits where the devices are."""
    source = make_folder(tmp_path / "photos", {f"train/{name}": 3 + 4 * k for k, name in enumerate("abc")})
    changes = {"data.dir": str(source), "data.sampling": "balanced", "data.class_weights": "a:2", "batch_size": 8}
    changes |= {
        "data.image_size": 32,
        "data.crop": 28,
        "epochs": 4.0,
        "max_steps": 0,
        "data.prepared_dir": str(tmp_path),
    }

    def train(name: str, **more: Any) -> list[dict[str, Any]]:
        train_and_evaluate(make_config("folder,lenet", **changes | more), tmp_path / name)
        program.main([str(tmp_path / name)])
        return read_metrics(tmp_path / name)

    one = {"parallel.num_devices": 1}
    whole = train("whole", **one)
    assert "images, each class equally often, in the order of seed 0" in capsys.readouterr().out
    train("parts", max_steps=2, **one)
    assert train("parts", **one, **{"data.cache": "device"})[-1] == whole[-1]
    both = train("both")
    assert [r.get("ids_sha256") for r in both] == [r.get("ids_sha256") for r in whole]
    assert both[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-4)


@pytest.mark.parametrize("fault", ["twice", "gap"])
def test_a_planted_fault_is_found(
    fault: str,
    tmp_path: Path,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the second epoch the stream gives an image twice, or leaves one out."""
    original = loader.epoch_order

    def faulty(size: int, seed: int, epoch: int) -> np.ndarray:
        order = original(size, seed, epoch)
        if epoch == 1:
            order = np.insert(order, 50, order[10]) if fault == "twice" else np.delete(order, 50)
        return order

    with monkeypatch.context() as patch:
        patch.setattr(loader, "epoch_order", faulty)
        run(tmp_path, make_config, epochs=3.0)
    with pytest.raises(AuditFailedError, match=r"2 of 3 .* 104 to 208"):
        program.main([str(tmp_path)])
    assert capsys.readouterr().out.count("MISMATCH with the expected order") == 2  # all after it are shifted


def test_a_resume_from_the_wrong_place_is_found(tmp_path: Path, make_config: MakeConfig) -> None:
    run(tmp_path, make_config, max_steps=20)
    records = read_metrics(tmp_path)
    assert all(stretch.is_right for stretch in audit.check(records))
    shifted = [dict(record) for record in records]
    shifted[-2]["examples_seen"] += 1
    assert not all(stretch.is_right for stretch in audit.check(shifted))
    without = [record for record in records if record is not next(r for r in records if r["kind"] == "epoch")]
    assert not all(stretch.is_right for stretch in audit.check(without))


def test_what_cannot_be_audited(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        program.main([str(tmp_path)])
    start = {"kind": "start", "examples_seen": 0, "seed": 0, "train_examples": 3}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(start) + "\n")
    with pytest.raises(UserError, match="evaluation"):
        program.main([str(tmp_path)])


def test_records_that_were_changed_or_lost_fail_the_audit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricWriter(tmp_path, 0) as writer:
        writer.write("start", 0, {"seed": 0, "train_examples": 4})
        for epoch in (1, 2):
            used = audit.chain("", *audit.presentations(size=4, seed=0, begin=4 * epoch - 4, end=4 * epoch))
            measures = {"train_loss": 2.5, "train_top1_error": 0.5, "validation_loss": 1.5}
            errors = {"validation_top1_error": 0.5, "validation_top5_error": None}
            writer.write("epoch", 4 * epoch, {"epoch": float(epoch), **measures, **errors, "ids_sha256": used})
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(8, {"params": np.zeros(1)}, {"records": writer.digest}, None)
    program.main([str(tmp_path)])
    assert "2 whole epochs" in capsys.readouterr().out
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(whole.replace("1.5", "0.5", 1))
    with pytest.raises(AuditFailedError, match=r"metrics\.jsonl: line 2 "):
        program.main([str(tmp_path)])
    (tmp_path / "metrics.jsonl").write_text("".join(whole.splitlines(keepends=True)[:2]))
    with pytest.raises(AuditFailedError, match=r"metrics\.jsonl: .* after line 2 "):
        program.main([str(tmp_path)])

"""The lines of a run, as they are read at a glance."""

from typing import Any

import pytest
from ml_collections import ConfigDict

from alexnet_jax.run import display

RECORD = {
    "epoch": 10.03,
    "train_loss": 0.2364,
    "validation_top1_error": 0.0389,
    "validation_top5_error": 0.0,
    "learning_rate": 0.01,
    "plateau_count": 2,
}
LONGEST = {
    "epoch": 90.0,
    "train_loss": 6.9088,
    "validation_top1_error": 0.999,
    "validation_top5_error": 0.995,
    "learning_rate": 0.000252,
    "plateau_count": 4,
}
PLATEAU = ConfigDict({"schedule": "plateau", "patience": 5})


@pytest.mark.parametrize(
    ("changes", "schedule", "images_per_second", "line"),
    [
        ({}, "plateau", 506.4, "epoch 10.03  loss 0.2364  error  3.89/0.00%  lr 0.01 (2/5)  506 images/s"),
        ({}, "cosine", 506.4, "epoch 10.03  loss 0.2364  error  3.89/0.00%  lr 0.01  506 images/s"),
        ({}, "cosine", 0.0, "epoch 10.03  loss 0.2364  error  3.89/0.00%  lr 0.01"),
        ({"validation_top5_error": None}, "step", 0.0, "epoch 10.03  loss 0.2364  error  3.89%  lr 0.01"),
        (
            LONGEST,
            "plateau",
            12_345.0,
            "epoch 90.00  loss 6.9088  error 99.90/99.50%  lr 0.000252 (4/5)  12,345 images/s",
        ),
    ],
)
def test_the_line_of_an_epoch(
    changes: dict[str, Any],
    schedule: str,
    images_per_second: float,
    line: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    optimizer = ConfigDict({"schedule": schedule, "patience": 5})
    display.show_epoch(RECORD | changes, optimizer, images_per_second, input_share=0.02)
    assert capsys.readouterr().out == f"{line}\n"
    assert len(line) <= 80


def test_waiting_for_images_is_told_where_it_matters(capsys: pytest.CaptureFixture[str]) -> None:
    display.show_epoch(RECORD, PLATEAU, 506.0, input_share=0.453)
    assert capsys.readouterr().out.splitlines()[1:] == ["  waited for images 45% of the time"]


def test_a_drop_is_told_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    reason, line = "step schedule, epoch 25.00", "  learning rate 0.01 -> 0.001: step schedule, epoch 25.00"
    display.show_change(0.01, 0.001, reason)
    assert capsys.readouterr().out == f"{line}\n"

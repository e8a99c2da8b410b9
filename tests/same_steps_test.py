"""Steps of run 145 agree with an independent PyTorch implementation, and a wrong one is noticed."""

from pathlib import Path

import pytest

from configs import alexnet

pytest.importorskip("torch")

from benchmarks import same_steps

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("decay_is_wrong", [False, True])
def test_every_event_of_the_schedule(
    tmp_path: Path, prepared_dir: str, monkeypatch: pytest.MonkeyPatch, decay_is_wrong: bool
) -> None:
    if decay_is_wrong:
        monkeypatch.setattr(same_steps, "WEIGHT_DECAY", 0.004)
    config = alexnet.get_config("synthetic,source,smoke")
    config.data.prepared_dir, config.compilation_cache_dir, config.model.hidden_width = prepared_dir, "", 256
    rows = list(same_steps.compare(config, steps=12, width_divisor=8, compress=True))
    assert [row["epoch"] for row in rows] == pytest.approx([91 * step / 12 for step in range(12)])
    worst = max(row["difference"] for row in rows)
    assert (worst > same_steps.TOLERANCE) == decay_is_wrong, worst

"""Steps of run 145 agree with an independent PyTorch implementation, and a wrong one is noticed."""

import itertools

import pytest

from configs import alexnet

pytest.importorskip("torch")

from benchmarks import same_steps

pytestmark = pytest.mark.slow


def test_every_event_of_the_schedule(prepared_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = alexnet.get_config("synthetic,source,smoke")
    config.data.prepared_dir, config.compilation_cache_dir, config.model.hidden_width = prepared_dir, "", 256
    steps = same_steps.compare(config, steps=12, width_divisor=8, compress=True)
    rows = list(itertools.islice(steps, 11))
    assert [row["epoch"] for row in rows] == pytest.approx([91 * step / 12 for step in range(11)])
    assert max(row["difference"] for row in rows) <= same_steps.TOLERANCE
    assert all(row["loss"] == pytest.approx(row["exact_loss"], rel=1e-5) for row in rows)
    monkeypatch.setattr(same_steps, "MOMENTUM", 0.8)  # the learning rate is now too low for the decay to matter
    assert next(steps)["difference"] > same_steps.TOLERANCE

"""The comparison of the recipes: options, summary, and a run of an epoch of a tiny folder."""

import json
from pathlib import Path

import pytest

from alexnet_jax import config as config_lib
from benchmarks import modern
from tests.pictures import make_folder


def test_options() -> None:
    options = modern.parse(["--data-dir=photos", "--seeds=3,1,3"])
    assert (options.epochs, options.seeds, options.data_dir) == (10.0, [3, 1], Path("photos"))
    assert modern.parse(["--data-dir=photos"]).seeds == [0, 1, 2]
    for wrong in ([], ["--data-dir=photos", "--seeds=a"], ["--data-dir=photos", "--epochs=ten"]):
        with pytest.raises(SystemExit):
            modern.parse(wrong)


def test_both_presets_differ_in_their_recipe_and_not_in_data_seed_and_length() -> None:
    options = modern.parse(["--data-dir=photos", "--epochs=4"])
    configs = [modern.make_config(options, preset, 7) for preset in modern.PRESETS]
    for config in configs:
        config_lib.check(config.to_dict())
        assert (config.seed, config.epochs, config.data.dir, config.model.preset in modern.PRESETS) == (
            7,
            4.0,
            "photos",
            True,
        )
    assert configs[0].data.image_size == configs[1].data.image_size
    changed = {line.split(":")[0] for line in config_lib.differences(*(config.to_dict() for config in configs))}
    assert {"config.label_smoothing", "config.data.mixup", "config.optimizer.ema_decay"} <= changed


def test_summary_and_table() -> None:
    runs = [
        {"preset": "small", "seed": 0, "test_top1_error": 0.5, "test_loss": 1.0},
        {"preset": "small", "seed": 1, "test_top1_error": 0.3, "test_loss": 1.0},
        {"preset": "small_modern", "seed": 0, "test_top1_error": 0.25, "test_loss": 1.0},
    ]
    size = {"parameters": 1234, "macs": 56_789}
    cells = modern.compare(runs, dict.fromkeys(modern.PRESETS, size))
    assert cells["small"] == pytest.approx(
        {**size, "test_top1_mean": 0.6, "test_top1_std": 0.02**0.5, "seeds": 2}, rel=1e-12
    )
    lines = modern.table(cells, 10.0).splitlines()
    assert lines[2] == "| `small` | 1,234 | 56,789 | 60.00% ± 14.14% | 2 |"
    assert lines[3] == "| `small_modern` | 1,234 | 56,789 | 75.00% | 1 |"


def test_the_whole_of_it_on_a_tiny_folder_and_network(
    tmp_path: Path, prepared_dir: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modern, "PRESETS", ("lenet",))
    folder = make_folder(tmp_path / "photos", {f"{split}/{name}": 8 for split in ("train", "test") for name in "ab"})
    output = tmp_path / "modern.json"
    words = [f"--data-dir={folder}", f"--prepared-dir={prepared_dir}", "--epochs=2", "--seeds=0"]
    words += [f"--workdir={tmp_path / 'runs'}", f"--output={output}"]
    modern.main(words)
    shown = capsys.readouterr().out
    measured = json.loads(output.read_text())
    assert [run["preset"] for run in measured["results"]["runs"]] == ["lenet"]
    assert measured["seeds"] == [0] and measured["results"]["presets"]["lenet"]["seeds"] == 1
    assert "| `lenet` | " in shown
    before = {path: path.stat().st_mtime for path in (tmp_path / "runs").rglob("*")}
    modern.main(words)  # nothing is run again
    assert {path: path.stat().st_mtime for path in (tmp_path / "runs").rglob("*")} == before

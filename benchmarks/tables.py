"""Prints the tables of docs/results.md that are made from files under results/, as Markdown.

    python -m benchmarks.tables

Each table ends with a line on data, seeds, hardware, git revision and command. A test compares the page with the
tables. It warns of results that were made by uncommitted code, or by code that has changed since.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alexnet_jax.experiments.ablations import COST_HEADER, Cost, RowResult
from alexnet_jax.experiments.figure1 import ratio_text
from alexnet_jax.experiments.results import Spread

RESULTS = Path(__file__).parent.parent / "results"

TRAINING = (":(glob)alexnet_jax/*.py", *(f"alexnet_jax/{name}" for name in ("ops", "models", "parallel", "data")))
"""The code that decides how a network is trained, as patterns for git."""

CODE = {
    "ablations": (*TRAINING, "alexnet_jax/experiments/ablations*"),
    "attack": ("alexnet_jax", "benchmarks/attack"),
    "faults": (*TRAINING, "alexnet_jax/diagnosis", "benchmarks/faults.py"),
    "figure1": (*TRAINING, "alexnet_jax/experiments/figure1.py"),
    "same": (*TRAINING, "benchmarks/same_steps.py"),
    "small": (*TRAINING, "benchmarks/small_sets.py", "benchmarks/tutorial_cnn.py"),
    "starting": (*TRAINING, "alexnet_jax/diagnosis/start_watch.py", "benchmarks/starting.py"),
}
"""The code that each kind of results depends on."""


def main() -> None:
    """Prints all tables, and the warnings to standard error."""
    for path in sorted(RESULTS.glob("*.json")):
        print(f"\n{path.name}\n")
        print("\n".join(table(path)))
        if outdated := changes(path, RESULTS.parent):
            print(f"warning: {path.name}: {outdated}", file=sys.stderr)


def changes(path: Path, repository: Path) -> str:
    """How the code that results depend on has changed since they were made; "" if it has not."""
    revision, _, dirty = json.loads(path.read_text())["git"].partition("-")
    command = ["git", "-C", str(repository), "diff", "--name-only", revision, "--", *CODE[_kind(path)]]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    files = found.stdout.splitlines()
    reasons = [f"made by uncommitted code on {revision[:7]}"] if dirty else []
    if found.returncode:
        reasons.append(f"its revision {revision[:7]} is not in this repository")
    if files:
        reasons.append(f"{len(files)} files have changed since {revision[:7]}: {', '.join(files[:5])}, ..."[:300])
    return "; ".join(reasons)


def table(path: Path) -> list[str]:
    """The lines of the table of a results file."""
    content = json.loads(path.read_text())
    results = content["results"]
    makers = {
        "ablations": _ablations,
        "attack": attack,
        "faults": _faults,
        "same": _same_steps,
        "figure1": _figure1,
        "small": small_sets,
        "starting": _starting,
    }
    return [*makers[_kind(path)](results), "", _about(content)]


def _kind(path: Path) -> str:
    return path.stem.partition("_")[0]


def _about(content: dict[str, Any]) -> str:
    hardware, seeds = content["hardware"], ", ".join(map(str, content["seeds"]))
    cores = f"{hardware['cores']} core{'s' if hardware['cores'] > 1 else ''} of {hardware['processor']}"
    revision, _, dirty = content["git"].partition("-")
    made_by = f"revision {revision[:7]}{' with changes' if dirty else ''}"
    versions = f"jax {content['packages']['jax']}, {content['measured']}, {made_by}"
    return f"{content['data']}; seeds {seeds}; {cores}, {versions}: `python {' '.join(content['command'])}`"


def _ablations(results: dict[str, Any]) -> Iterator[str]:
    rows = list(results["rows"].values())
    claims = any(row["paper"] != "-" or row["source"] != "-" for row in rows)
    costs = any(row.get("cost") for row in rows) and not claims
    theirs = " paper | authors' code |" if claims else f" {' | '.join(COST_HEADER)} |" if costs else ""
    yield f"| what is changed | test error | against the first |{theirs}"
    yield f"|---|--:|--:|{'---|---|' if claims else '--:|' * len(COST_HEADER) if costs else ''}"
    measured = [RowResult(tuple(row["errors"])) for row in rows]
    for row, result in zip(rows, measured, strict=True):
        if not result.errors:
            continue  # all seeds failed
        theirs = f" {row['paper']} | {row['source']} |" if claims else ""
        if costs:
            theirs = f" {' | '.join(Cost(**row['cost']).texts())} |" if row["cost"] else " - |" * len(COST_HEADER)
        yield f"| {row['what']} | {result.text()} | {result.difference(measured[0])} |{theirs}"


def _figure1(results: dict[str, Any]) -> Iterator[str]:
    yield "| network | activation | best learning rate | epochs to 25 % error | tanh : ReLU | to tanh's last error |"
    yield "|---|---|--:|--:|--:|--:|"
    for network, of_network in results.items():
        ratios = of_network["ratios_at_the_last_error_of_tanh"]
        last = f"{Spread.of(ratios).text('.1f')} times" if ratios else "-"
        for activation in ("relu", "tanh"):
            race = of_network[activation]
            epochs = [race["cap"] if value is None else value for value in race["epochs"]]
            spread = Spread.of([float(value) for value in epochs])
            took = f"more than {spread.mean:.1f}" if None in race["epochs"] else spread.text(".1f")
            ratio = ratio_text(of_network["ratio_is"], of_network["ratio"])
            cells = [
                f"`{network}`",
                activation,
                f"{race['rate']:g}",
                took,
                *([ratio, last] if activation == "tanh" else ["", ""]),
            ]
            yield f"| {' | '.join(cells)} |"


def _starting(results: dict[str, Any]) -> Iterator[str]:
    yield "| preset | batch | learning rate | seeds that started | within steps | median step |"
    yield "|---|--:|--:|--:|--:|--:|"
    for summary in results["summaries"]:
        for preset, cells in summary["presets"].items():
            median = "-" if cells["median_steps"] is None else f"{cells['median_steps']:g}"
            started = f"{cells['started']} of {cells['seeds']}"
            rate = summary.get("learning_rate") or "its own"
            yield f"| `{preset}` | {summary['batch']} | {rate} | {started} | {summary['steps']} | {median} |"


def _faults(results: dict[str, Any]) -> Iterator[str]:
    yield "| planted fault | diagnosis |"
    yield "|---|---|"
    for fault in results["faults"]:
        yield f"| {fault['fault']}, `{fault['config']}` | {fault['diagnosis']} |"


def _same_steps(results: dict[str, Any]) -> Iterator[str]:
    yield "| step | epoch of run 145 | loss | PyTorch's | difference | of the step | drift | PyTorch's |"
    yield "|--:|--:|--:|--:|--:|--:|--:|--:|"
    rows = results["rows"]
    for row in [rows[0], *rows[len(rows) // 5 - 1 :: len(rows) // 5]]:
        losses = [f"{row[name]:.4f}" for name in ("loss", "exact_loss")]
        apart = [f"{row[name]:.0e}" for name in ("difference", "of_step", "drift", "torch_drift")]
        yield f"| {row['step']:,} | {row['epoch']:.1f} | {' | '.join([*losses, *apart])} |"


def small_sets(results: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the table of small sets, of those on which both networks were trained."""
    yield "| images | `medium`: test error | seconds | tutorial: test error | learning rate | seconds | difference |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for result in results.values():
        if not result["ours"] or not result["tutorial"]:
            continue
        ours, best = result["ours"], best_learning_rate(result["tutorial"])
        theirs = [run for run in result["tutorial"] if run["learning_rate"] == best]
        difference = 100 * (_mean(ours, "test_error") - _mean(theirs, "test_error"))
        cells = [result["what"], _errors(ours), f"{_mean(ours, 'seconds'):.0f}"]
        cells += [_errors(theirs), f"{best:g}", f"{_mean(theirs, 'seconds'):.0f}", f"{difference:+.2f}"]
        yield f"| {' | '.join(cells)} |"


def best_learning_rate(runs: list[dict[str, Any]]) -> float:
    """The learning rate with the lowest validation error of the first seed, the only one that has tried all."""
    first = [run for run in runs if run["seed"] == runs[0]["seed"]]
    return min(first, key=lambda run: run["validation_error"])["learning_rate"]


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return Spread.of([float(run[key]) for run in runs]).mean


def _errors(runs: list[dict[str, Any]]) -> str:
    return Spread.of([run["test_error"] for run in runs]).text(".2%")


def attack(results: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the table of an attack's outcomes."""
    kinds = results["kinds"]
    columns = list(next(iter(kinds.values())))
    yield f"| kind | {' | '.join(columns)} |"
    yield f"|---|{'--:|' * len(columns)}"
    for kind, counts in kinds.items():
        yield f"| {kind} | {' | '.join(f'{counts[column]:,}' for column in columns)} |"


if __name__ == "__main__":
    main()

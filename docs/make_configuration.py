"""Writes docs/configuration.md, the page of all keys, from the table in alexnet_jax/config_keys.py.

python -m docs.make_configuration
"""

from collections.abc import Iterator
from pathlib import Path

from alexnet_jax.config_keys import KEYS, Key

PAGE = Path(__file__).with_name("configuration.md")

HEAD = """# Configuration

After this page you know every key of a config, and can set it. `python main.py --config=configs/alexnet.py --help`
prints the same list.

```bash
python main.py --config=configs/alexnet.py --config.optimizer.learning_rate=0.005 --workdir=runs/slower
```

A preset or data set of `configs/alexnet.py` may set other values than these defaults; `config.json` in the folder of a
run has those that it used. Put quotes around tuples: `'--config.optimizer.step_epochs=(30.0,60.0)'`. An unknown key is
answered with the nearest one, and a value that cannot work with a line that says why.

A tuple of one row ends in a comma: `'--config.optimizer.learning_rate_multipliers=(("conv1/*",0.0,0.0),)'`. Its pattern
is like that of file names, and stands for all parameters with matching names, such as `conv1/kernel`. `None` cannot be
typed.

On the command line `--config.` stands before the name of a key. A default of `None` means that the preset or the data
decide. The column "resume" says whether a run may continue with another value: "free" keys change no result, only how
it is computed; those of "length" decide how far, or how, a run goes on; a "fixed" key makes it another experiment. A
dagger (†) marks keys of the machine: they may differ between the processes of one run, and those in the folder of a run
are [never used](security.md) by commands that load it.

This page is made from `alexnet_jax/config_keys.py` by `python -m docs.make_configuration`.
"""

TITLES = {
    "": "General",
    "data": "Data",
    "model": "Network",
    "optimizer": "Optimizer and schedule",
    "parallel": "Devices and processes",
    "checkpoint": "Checkpoints",
}
"""Of sections; one that is not here has its name."""


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page as Markdown."""
    sections: dict[str, list[str]] = {}
    for name, entry in KEYS.items():
        sections.setdefault(name.rpartition(".")[0], []).append(_row(name, entry))
    return "\n".join([HEAD, *_tables(sections)]).rstrip() + "\n"


def _tables(sections: dict[str, list[str]]) -> Iterator[str]:
    for section, rows in sections.items():
        yield f"## {TITLES.get(section, section)}\n"
        yield "| key | default | meaning | value | resume |"
        yield "|---|---|---|---|---|"
        yield from rows
        yield ""


def _row(name: str, key: Key) -> str:
    mark = "" if key.is_shared else " †"
    rules = "; ".join(_shortened(rule.text) for rule in key.rules)
    cells = (f"`{name}`{mark}", f"`{key.default!r}`", key.comment, rules, key.resume)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _shortened(rule: str) -> str:
    """A rule as a cell says it: "must be more than 0" is "more than 0", and a list of names is just that."""
    for beginning, short in {"must be ": "", "must not be ": "not ", "is unknown; there are: ": ""}.items():
        if rule.startswith(beginning):
            return short + rule.removeprefix(beginning)
    return rule


if __name__ == "__main__":
    main()

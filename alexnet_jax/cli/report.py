"""`python -m alexnet_jax report RUN`: one page on a run, in a file that needs no network."""

from alexnet_jax.cli.arguments import run_parser
from alexnet_jax.inference.report import make_report
from alexnet_jax.system import console
from alexnet_jax.system.files import local_path, make_folder, write_bytes, write_text


def main(argv: list[str]) -> None:
    """Writes report.html, or with --png its figures alone."""
    parser = run_parser("report", __doc__, "the folder of a run: finished, crashed or still training", data=True)
    parser.add_argument(
        "--output", type=local_path, help="the file, or with --png the folder; by default in that of the run"
    )
    parser.add_argument("--png", action="store_true", help="writes the figures alone, each as a PNG file")
    options = parser.parse_args(argv)
    report = make_report(options.run, options.checkpoint, options.data_dir, options.prepared_dir, options.labels)
    if options.png:
        folder = options.output or make_folder(options.run / "figures")
        for figure in report.figures():
            write_bytes(folder / f"{figure.name}.png", figure.png())
            console.show(f"{folder / figure.name}.png  {figure.text}")
        return
    path = options.output or options.run / "report.html"
    page = report.html()
    write_text(path, page)
    console.show(f"The report lies in {path} ({len(page) / 1e6:.1f} MB)")

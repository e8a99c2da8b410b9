"""`python -m alexnet_jax explain_prediction RUN photo.jpg`: what a network saw in an image, as a page and a picture."""

from alexnet_jax.cli.arguments import run_parser
from alexnet_jax.errors import UserError
from alexnet_jax.inference.evaluation import open_run_dataset
from alexnet_jax.inference.explanation import explain_prediction
from alexnet_jax.inference.explanation_page import explanation_report, picture
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.parallel.compilation import use_compilation_cache
from alexnet_jax.system import console
from alexnet_jax.system.files import local_path, make_folder, write_bytes, write_text


def main(argv: list[str]) -> None:
    """Writes IMAGE.html and IMAGE.png."""
    parser = run_parser("explain_prediction", __doc__, data=True)
    parser.add_argument("image", type=local_path, help="the image file")
    parser.add_argument("--output", type=local_path, help="the folder; by default explanations/ in that of the run")
    options = parser.parse_args(argv)
    run = load_run(options.run, options.checkpoint)
    use_compilation_cache(run.config.compilation_cache_dir)
    run.resize(options.image)  # so that an unreadable image is told before data are prepared
    folder = options.output or make_folder(run.folder / "explanations")
    page, picture_file = (folder / f"{options.image.name}.{kind}" for kind in ("html", "png"))  # replaces no image
    dataset = None
    try:
        dataset = open_run_dataset(run, options.data_dir, options.prepared_dir, options.labels)
    except UserError as error:
        console.warn(f"No training images are shown: {error}")
    explanation = explain_prediction(run, options.image, dataset)
    report = explanation_report(run, options.image.name, explanation)
    html = report.html()
    write_text(page, html)
    write_bytes(picture_file, picture(report))
    console.show(report.summary)
    console.show(f"{page} ({len(html) / 1e6:.1f} MB) and {picture_file} show what it saw")

"""`python -m alexnet_jax convert`: converts weights of torchvision or Caffe to a run, or a run to such weights."""

import argparse
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.augment import Preprocessing
from alexnet_jax.checkpoint import Checkpoints, checkpoint_names
from alexnet_jax.cli import arguments
from alexnet_jax.cli.flags import config_from_flags, refuse_words
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import check_names, make_learning_rates, make_preprocessing
from alexnet_jax.inference.imagenet import default_class_names
from alexnet_jax.inference.layouts import LAYOUTS, count_outputs, from_layout, to_layout
from alexnet_jax.inference.loaded_run import load_run
from alexnet_jax.inference.weight_files import read_arrays, write_arrays
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.optimizer import make_optimizer
from alexnet_jax.run import run_folder
from alexnet_jax.system import console
from alexnet_jax.system.files import local_path, read_json
from alexnet_jax.system.versions import describe_environment
from alexnet_jax.train_state import create_train_state

SOURCE_HELP = "file of weights of PyTorch, Caffe, safetensors or NumPy (.npz); with --output, a run"
CLASS_NAMES_HELP = "text file, a class name a line; by default ImageNet's for 1,000 classes, else 0, 1, 2 and so on"


def main(argv: list[str]) -> None:
    """Makes a run of a file of weights, or, with --output, a file of weights of a run."""
    directions = f"{{--workdir=DIR {arguments.CONFIG} | --output=FILE}}"
    usage = ("SOURCE", "--layout=LAYOUT", directions, "[OPTION ...]")
    parser = arguments.config_parser(arguments.program("convert"), __doc__, *usage)
    parser.add_argument("source", type=Path, help=SOURCE_HELP)
    parser.add_argument("--layout", choices=LAYOUTS, required=True, help="whose names and order of axes the file has")
    parser.add_argument("--output", type=local_path, help=".safetensors or .npz file to write the weights of a run to")
    parser.add_argument("--checkpoint", default="tested", help=f"of the run: {arguments.CHECKPOINT_HELP}")
    parser.add_argument("--workdir", type=local_path, help="folder of the run to make of the weights; needs --config")
    parser.add_argument("--class-names", type=Path, help=CLASS_NAMES_HELP)
    options, words = arguments.parse(parser, argv)
    if (options.output is None) == (options.workdir is None):
        raise UserError("give --workdir=DIR to make a run of weights, or --output=FILE to write the weights of a run")
    if options.output:
        refuse_words(["convert", *words])
        run = load_run(options.source, options.checkpoint)
        arrays = to_layout(options.layout, run.model, run.preprocessing.crop, run.variables)
        write_arrays(options.output, arrays)
        console.show(f"{_described(arrays)} in the layout of {options.layout} lie in {options.output}")
    else:
        _make_run(options, config_from_flags("convert", words), ["-m", "alexnet_jax", "convert", *argv])


def _make_run(options: argparse.Namespace, config: ConfigDict, command: list[str]) -> None:
    """Writes a run of weights. Raises UserError before that if weights, config and class names do not fit together."""
    source, layout, workdir = options.source, options.layout, options.workdir
    if checkpoint_names(workdir / "checkpoints") or not _is_free(workdir / "config.json", config):
        raise UserError(f"{workdir} holds a run already; give another --workdir")
    preprocessing = _preprocessing(config, layout)
    check_names(config)
    arrays = read_arrays(source)
    outputs = count_outputs(layout, config.model, arrays)
    class_names = _class_names(options.class_names, outputs)
    model = get_model(config.model, outputs)
    try:
        variables = from_layout(layout, model, config.data.crop, arrays)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    state = create_train_state(variables, make_optimizer(config.optimizer, variables["params"]), config.seed)
    learning_rates = make_learning_rates(config, variables["params"])
    tree = run_folder.checkpoint_tree(state, learning_rates, preprocessing)
    versions, first = describe_environment(command), learning_rates.of_kernels(0.0)
    metadata = run_folder.checkpoint_metadata(config, class_names, "", run_folder.Progress(), first, versions)
    run_folder.write_description(workdir, config, versions)
    with Checkpoints(workdir / "checkpoints", config.checkpoint.keep) as checkpoints:
        checkpoints.save(0, tree, metadata, best=None)
    called = ", named as ImageNet's" if options.class_names is None and outputs == 1000 else ""
    console.show(f"{_described(arrays)} of {source} make the run in {workdir}, for {outputs:,} classes{called}")
    console.show(f"Try:  {arguments.program('predict')} {workdir} photo.jpg")


def _is_free(path: Path, config: ConfigDict) -> bool:
    """Whether there is no config.json, or only that of the same conversion, which was interrupted."""
    return not path.exists() or read_json(path, dict) == json.loads(json.dumps(config.to_dict()))


def _preprocessing(config: ConfigDict, layout: str) -> Preprocessing:
    """The preprocessing that the config gives alone, for there are no training images to measure."""
    if config.data.mean_form != "channel" or config.data.mean is None:
        # The mean of Caffe's ilsvrc_2012_mean.npy; torchvision's is that of the preset owt.
        usual = {"caffe": "(123.0,117.0,104.0)", "torchvision": "(123.675,116.28,103.53)"}[layout]
        raise UserError(
            "without training images the mean must be given: --config.data.mean_form=channel "
            f"'--config.data.mean={usual}' are the grey levels of R, G, B that {layout} subtracts"
        )
    return make_preprocessing(config.data, Statistics.unknown(config.data.image_size))


def _class_names(path: Path | None, outputs: int) -> list[str]:
    if path is None:
        return default_class_names(outputs)
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--class-names={path} cannot be read: {error}") from error
    if len(names) != outputs or not all(names):
        raise UserError(f"--class-names={path} has {len(names)} lines; a name for each of {outputs} classes is needed")
    return names


def _described(arrays: dict[str, Any]) -> str:
    return f"{len(arrays)} arrays, {sum(array.size for array in arrays.values()):,} parameters,"

"""The command line: parse, call, print. No logic."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcn_jax.errors import ConfigError, FcnJaxError, TrainingError
from fcn_jax.runtime import cache, process


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; the process's own if not given.

    Returns:
        Exit status: 0 done; 1 the run could not go on (a loss that is not finite, input workers
        killed, disk or memory full, an error that nobody foresaw), networks that are not equal, or
        broken plugins; 2 bad input: arguments, settings, or a file of the user's; 128 + signal when
        stopped by one.
    """
    args = _parser().parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    cache.enable_compilation_cache()
    if argv is None:  # the process is this command's own
        process.configure_process(trains=args.call is _train)
    import logging  # not before: --help needs none of it

    log, handler = logging.getLogger("fcn_jax"), _warnings()
    log.addHandler(handler)
    propagated, log.propagate = log.propagate, False
    try:
        return int(args.call(args))
    except FcnJaxError as error:
        if args.debug:
            raise
        print(f"fcn-jax: error: {_one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt as error:
        if str(error):
            print(f"fcn-jax: {_one_line(error)}", file=sys.stderr)
        return 130
    finally:
        log.removeHandler(handler)
        log.propagate = propagated


def _warnings() -> Any:
    """A log handler that prints the package's warnings, a line each."""
    import logging

    class Printing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print(f"fcn-jax: warning: {_one_line(record.getMessage())}", file=sys.stderr)

    return Printing(logging.WARNING)


def _one_line(message: object) -> str:
    """A message in one line; spaces stay as they are, since file names hold them."""
    return " ".join(line.strip() for line in str(message).splitlines() if line.strip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fcn-jax",
        description="Semantic segmentation with fully convolutional networks in JAX/Flax, proven equal to PyTorch.",
    )
    parser.add_argument("--version", action="version", version=f"fcn-jax {_version()}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, call: Any, help: str, epilog: str | None = None
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help, description=help, epilog=epilog, parents=[common]
        )
        sub.set_defaults(call=call)
        return sub

    train = command(
        "train",
        _train,
        "Train a network by a recipe.",
        "Exit status: 0 done; 1 the run could not go on (a loss that is not finite, input workers killed, disk or memory full); "
        "2 bad input: a setting or a file; 128 + signal when stopped by one. Whatever ends a run, the steps that it has taken are saved, "
        "if they can be, and --resume goes on.",
    )
    train.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE|FILE.toml",
        help="shipped recipe or own file (default: shapes)",
    )
    train.add_argument("--data", metavar="DIR", help="folder of the dataset")
    train.add_argument(
        "--init",
        metavar="FILE|NAME|CHECKPOINT",
        help="initial weights: a file of PyTorch's or .safetensors, published weights by name, a run or a checkpoint",
    )
    train.add_argument(
        "--reinit",
        metavar="GLOB",
        action="append",
        default=[],
        help="names that keep their random initial values",
    )
    train.add_argument(
        "--drop",
        metavar="GLOB",
        action="append",
        default=[],
        help="names of the weights to leave out on purpose",
    )
    train.add_argument(
        "--key",
        metavar="KEY",
        help="which of several networks in the file to take, such as model_ema",
    )
    train.add_argument(
        "--run", metavar="DIR", type=_directory, help="directory to write (default: runs/RECIPE)"
    )
    train.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    train.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a setting, such as optim.lr=0.01",
    )

    evaluate = command("eval", _eval, "Score a trained network on all whole images of a split.")
    evaluate.add_argument(
        "checkpoint", metavar="RUN|CHECKPOINT", help="a run (its best checkpoint) or one checkpoint"
    )
    evaluate.add_argument(
        "--data", metavar="DIR", help="folder of the dataset (default: the run's)"
    )
    evaluate.add_argument(
        "--dataset", metavar="NAME", help="registered dataset (default: the run's)"
    )
    evaluate.add_argument("--split", metavar="NAME", help="default: the run's validation split")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")

    predict = command(
        "predict",
        _predict,
        "Segment images: STEM.png (indexed mask) and STEM_overlay.png for each.",
    )
    predict.add_argument(
        "checkpoint", metavar="RUN|CHECKPOINT", help="a run (its best checkpoint) or one checkpoint"
    )
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders or globs")
    predict.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=_directory,
        default=Path("predictions"),
        help="default: predictions",
    )
    predict.add_argument(
        "--overwrite",
        action="store_true",
        help="replace results of an earlier prediction; other files are never replaced",
    )
    for scaling in (evaluate, predict):
        scaling.add_argument(
            "--value-range",
            metavar=("LOW", "HIGH"),
            type=float,
            nargs=2,
            help="stored values that mean black and white in images of more than 8 bits (default: as in training)",
        )
        scaling.add_argument(
            "--exact-sizes",
            action="store_true",
            help="compile a program for each image size, instead of padding images that have many sizes",
        )

    convert = command(
        "convert",
        _convert,
        "Convert PyTorch weights to a checkpoint or, with --to-torch, a checkpoint to PyTorch.",
    )
    convert.add_argument(
        "source",
        metavar="FILE|NAME|RUN|CHECKPOINT",
        help="a file of PyTorch's or .safetensors, or published weights by name, such as IMAGENET1K_V1; with --to-torch a run or "
        "checkpoint",
    )
    convert.add_argument(
        "--model",
        metavar="NAME",
        help="a registered whole model or backbone; --to-torch needs none",
    )
    convert.add_argument(
        "--head",
        metavar="NAME",
        help="put on a backbone, which makes a whole model of it (default: none)",
    )
    convert.add_argument(
        "--aux-head", metavar="NAME", help="auxiliary head to put on a backbone (default: none)"
    )
    convert.add_argument(
        "--num-classes",
        metavar="N",
        type=int,
        help="of a whole model (default: the registered model's, or 21)",
    )
    convert.add_argument(
        "--output-stride", metavar="N", type=int, help="of the backbone (default: its own)"
    )
    for part in ("backbone", "head", "aux-head"):
        convert.add_argument(
            f"--{part}-option",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help=f"an option of the {part.replace('-', ' ')}",
        )
    convert.add_argument(
        "--reinit",
        metavar="GLOB",
        action="append",
        default=[],
        help="names that keep their random initial values",
    )
    convert.add_argument(
        "--drop",
        metavar="GLOB",
        action="append",
        default=[],
        help="names of the file to leave out on purpose",
    )
    convert.add_argument(
        "--key",
        metavar="KEY",
        help="which of several networks in the file to take, such as model_ema",
    )
    convert.add_argument(
        "--to-torch",
        action="store_true",
        help="write a state dict for load_state_dict(strict=True)",
    )
    convert.add_argument(
        "--names",
        metavar="SCHEME",
        help="with --to-torch: torchvision (default), d2l, the book chapter's, or a plugin's",
    )
    convert.add_argument(
        "-o",
        "--output",
        metavar="DIR|FILE",
        type=Path,
        required=True,
        help="directory to write, with --to-torch a .pth or .safetensors file; what is there already is never overwritten",
    )

    verify = command(
        "verify",
        _verify,
        "Show that a model is the same function as its PyTorch original, or which layer is not.",
    )
    verify.add_argument(
        "--model", metavar="NAME", required=True, help="a registered whole model, or a backbone"
    )
    verify.add_argument("--head", metavar="NAME", help="put on a backbone (default: fcn32s)")
    verify.add_argument(
        "--aux-head", metavar="NAME", help="auxiliary head to put on a backbone (default: none)"
    )
    verify.add_argument(
        "--num-classes", metavar="N", type=int, help="default: the registered model's, or 21"
    )
    verify.add_argument(
        "--output-stride", metavar="N", type=int, help="of the backbone (default: its own)"
    )
    verify.add_argument(
        "--weights", metavar="FILE|NAME", help="weights of both sides (default: random ones)"
    )
    verify.add_argument(
        "--reinit",
        metavar="GLOB",
        action="append",
        default=[],
        help="names that the weights lack on purpose",
    )
    verify.add_argument(
        "--size",
        metavar="HxW",
        type=_size,
        action="append",
        help="of the images; may be repeated (default: 320x480)",
    )
    verify.add_argument(
        "--batch", metavar="N", type=int, default=2, help="images at a time (default: 2)"
    )
    verify.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="compared precision (default: float32)",
    )
    verify.add_argument(
        "--grad", action="store_true", help="compare the gradient of every parameter too"
    )
    verify.add_argument(
        "--train-steps",
        metavar="N",
        type=int,
        default=0,
        help="compare a run of so many training steps too",
    )
    verify.add_argument(
        "--train-lr",
        metavar="LR",
        type=float,
        default=0.01,
        help="their first learning rate (default: 0.01); less without BatchNorm",
    )
    verify.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of everything random (default: 0)"
    )
    verify.add_argument(
        "--report",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="write it too: .html or .json",
    )

    plugins = commands.add_parser(
        "plugins",
        help="List, check and write plugins.",
        description="List, check and write plugins.",
    )
    actions = plugins.add_subparsers(title="actions", required=True, metavar="ACTION")

    def action(name: str, call: Any, help: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help, parents=[common])
        sub.set_defaults(call=call)
        return sub

    show = action("list", _plugins_list, "Show what is installed, and of which distribution.")
    show.add_argument("--check", action="store_true", help="load each one, in a process of its own")
    show.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help="that each may take (default: 60)",
    )

    check = action(
        "check",
        _plugins_check,
        "Hold one plugin against the contract: what it promises against what it does.",
    )
    check.add_argument(
        "name",
        metavar="NAME",
        help="of a backbone, head, whole model or dataset, or DISTRIBUTION:NAME",
    )
    check.add_argument(
        "--set",
        metavar="OPTION=VALUE",
        action="append",
        default=[],
        help="an option of the plugin, such as width=64",
    )
    check.add_argument("--data", metavar="DIR", type=Path, help="folder of a dataset")
    check.add_argument(
        "--split",
        metavar="NAME",
        action="append",
        default=[],
        help="of a dataset; may be repeated (default: train and val)",
    )
    check.add_argument(
        "--kind",
        choices=["backbone", "head", "model", "dataset"],
        help="where NAME is of several (default: all)",
    )
    check.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=60.0,
        help="that its import may take (default: 60)",
    )

    new = action(
        "new",
        _plugins_new,
        "Write a distribution with one plugin in it, which passes its own tests.",
    )
    new.add_argument(
        "name",
        metavar="NAME",
        help="to register it under: lower-case letters, digits and underscores",
    )
    kind = new.add_mutually_exclusive_group()
    for word in ("backbone", "head", "dataset"):
        default = " (the default)" if word == "backbone" else ""
        kind.add_argument(
            f"--{word}", dest="kind", action="store_const", const=word, help=f"a {word}{default}"
        )
    new.set_defaults(kind="backbone")
    new.add_argument(
        "-o", "--output", metavar="DIR", type=Path, help="folder to make (default: fcn-jax-NAME)"
    )
    return parser


def _directory(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of a directory is empty")
    return Path(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no time; give seconds above 0")
    return seconds


def _size(text: str) -> tuple[int, int]:
    height, separator, width = text.lower().partition("x")
    if not (separator and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"'{text}' is no size; give height and width in pixels, such as 320x480"
        )
    return int(height), int(width)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("fcn-jax")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _train(args: argparse.Namespace) -> int:
    import shlex
    import signal

    from fcn_jax import config
    from fcn_jax.train.loop import train

    recipe = "shapes" if args.recipe is None else args.recipe
    run = args.run or Path("runs") / Path(recipe).stem
    settings = list(args.set)
    if args.resume and args.recipe is None and run.is_dir() and any(run.iterdir()):
        table: dict[str, Any] = config.read_run(run).model_dump(mode="json")
    else:
        table = config.read_recipe(recipe)
    if args.data is not None:
        settings.append(f"data.root={json.dumps(args.data)}")
    if args.init is not None:
        settings.append(f"init.weights={json.dumps(args.init)}")
    if args.reinit:
        settings.append(f"init.reinit={json.dumps(args.reinit)}")
    if args.drop:
        settings.append(f"init.drop={json.dumps(args.drop)}")
    if args.key:
        settings.append(f"init.key={json.dumps(args.key)}")
    result = train(config.parse(config.override(table, settings), recipe), run, resume=args.resume)
    again = f"fcn-jax train --run {shlex.quote(str(run))} --resume"
    if result.stopped_by:
        saved = (
            f"the work up to step {result.saved} is saved; go on with: {again}"
            if result.saved
            else "nothing is written"
        )
        print(f"stopped by {result.stopped_by} after step {result.step}: {saved}")
        return 128 + signal.Signals[result.stopped_by].value
    if result.was_finished:
        print(
            f"{run} is finished (step {result.step}). To train more, start another run from its parameters: fcn-jax train --init "
            f"{shlex.quote(str(run))} --run NEW; where optim.schedule is 'constant', raise its epochs: {again} --set train.epochs=N"
        )
    if result.scores:
        print(f"val {result.scores.summary()}; run in {run}")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from fcn_jax.eval.evaluate import evaluate_checkpoint
    from fcn_jax.runtime import json_text

    outcome = evaluate_checkpoint(
        args.checkpoint,
        dataset=args.dataset,
        data=args.data,
        split=args.split,
        value_range=_value_range(args),
        exact_sizes=args.exact_sizes,
    )
    if args.json:
        for note in outcome.notes:
            print(f"note: {note}", file=sys.stderr)
        _print(json_text.dumps(outcome.to_dict()))
    else:
        _print(str(outcome))
    return 0


def _predict(args: argparse.Namespace) -> int:
    from fcn_jax.eval.predict import predict_files

    for mask, overlay in predict_files(
        args.checkpoint,
        args.images,
        args.output,
        overwrite=args.overwrite,
        value_range=_value_range(args),
        exact_sizes=args.exact_sizes,
        say=lambda line: print(f"note: {line}", file=sys.stderr),
    ):
        _print(f"{mask} {overlay}")
    return 0


def _value_range(args: argparse.Namespace) -> tuple[float, float] | None:
    if args.value_range is None:
        return None
    low, high = args.value_range
    if not -math.inf < low < high < math.inf:
        raise ConfigError(
            f"--value-range {low:g} {high:g}: give two finite numbers, the smaller one first"
        )
    return low, high


def _print(text: str) -> None:
    """Print to standard output, with escapes for letters that its encoding lacks. A reader that has gone ends no command."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _convert(args: argparse.Namespace) -> int:
    if args.to_torch:
        given = {
            "--model": args.model,
            "--head": args.head,
            "--aux-head": args.aux_head,
            "--num-classes": args.num_classes is not None,
            "--output-stride": args.output_stride is not None,
            "--backbone-option": args.backbone_option,
            "--head-option": args.head_option,
            "--aux-head-option": args.aux_head_option,
            "--reinit": args.reinit,
            "--drop": args.drop,
            "--key": args.key,
        }
        if surplus := [option for option, value in given.items() if value]:
            raise ConfigError(
                f"--to-torch goes without {', '.join(surplus)}: the checkpoint says what it holds"
            )
    elif args.names is not None:
        raise ConfigError(
            "--names goes with --to-torch; the names of a file to import are recognized"
        )
    elif args.model is None:
        raise ConfigError(
            "--model is missing: name a registered whole model or backbone (fcn-jax plugins list), or use --to-torch"
        )

    from fcn_jax import config
    from fcn_jax.convert.command import convert_file, export_file

    if args.to_torch:
        print(
            f"{args.output}: {export_file(args.source, args.output, key_format=args.names or 'torchvision')}"
        )
    else:
        record = convert_file(
            args.source,
            args.model,
            args.output,
            head=args.head,
            aux_head=args.aux_head,
            num_classes=args.num_classes,
            output_stride=args.output_stride,
            backbone_options=config.override({}, args.backbone_option, "--backbone-option"),
            head_options=config.override({}, args.head_option, "--head-option"),
            aux_head_options=config.override({}, args.aux_head_option, "--aux-head-option"),
            reinit=args.reinit,
            drop=args.drop,
            key=args.key or "",
        )
        print(f"{args.output}: {record}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from fcn_jax.runtime.progress import Progress
    from fcn_jax.verify import html, verify_model

    for path in args.report:
        html.check_path(path)
    try:
        with Progress(f"verify {args.model}") as progress:
            report = verify_model(
                args.model,
                weights=args.weights,
                reinit=args.reinit,
                head=args.head,
                aux_head=args.aux_head,
                num_classes=args.num_classes,
                output_stride=args.output_stride,
                sizes=args.size or [(320, 480)],
                batch=args.batch,
                dtype=args.dtype,
                grad=args.grad,
                train_steps=args.train_steps,
                train_lr=args.train_lr,
                seed=args.seed,
                progress=lambda done, total, what: progress.update(done, max(done, total), what),
            )
    except FcnJaxError:
        raise
    except (
        Exception
    ) as error:  # a port that breaks down is not one that was found unequal, which is what 1 says
        if args.debug:
            raise
        raise FcnJaxError(
            f"{args.model} could not be run: {type(error).__name__}: {error} (--debug shows where)"
        ) from error
    print(report)
    for path in args.report:
        html.write(report, path)
    return 0 if report.equal else 1


def _plugins_list(args: argparse.Namespace) -> int:
    from fcn_jax.plugins import isolation, registry

    plugins = registry.default()
    entries = plugins.entries()
    if not entries:
        raise ConfigError(
            "no plugins are registered, not even the built-ins: install fcn-jax, do not only put it on the path"
        )
    faults = isolation.check_all(entries, args.timeout) if args.check else {}
    width = max(len(entry.name) for entry in entries)
    broken = 0
    for entry in entries:
        line = f"{entry.kind:<10} {entry.name:<{width}}  {entry.distribution} {entry.version}"
        problems = [problem for problem in (faults.get(entry), plugins.conflict(entry)) if problem]
        broken += bool(problems)
        print(
            line
            + (f"  BROKEN: {'; '.join(problems)}" if problems else "  ok" if args.check else "")
        )
    for where, problem in registry.faults().items():
        broken += 1
        print(f"{where}  BROKEN: {problem}")
    return 1 if args.check and broken else 0


def _plugins_check(args: argparse.Namespace) -> int:
    from fcn_jax import config
    from fcn_jax.plugins.testing.command import check_plugin, registered

    options = config.override({}, args.set)
    entries = registered(args.name, args.kind and f"{args.kind}s")
    given = {"--set": args.set, "--data": args.data is not None, "--split": args.split}
    if len(entries) > 1 and any(given.values()):
        surplus = ", ".join(option for option, value in given.items() if value)
        choices = " or ".join(f"--kind {entry.kind.removesuffix('s')}" for entry in entries)
        raise ConfigError(
            f"'{args.name}' is of several kinds, and {surplus} for one of them: add {choices}"
        )
    kept = True
    for entry in entries:
        print(entry)
        for finding in check_plugin(
            entry, options=options, data=args.data, splits=args.split, timeout=args.timeout
        ):
            print(finding, flush=True)
            kept &= finding.kept
    return 0 if kept else 1


def _plugins_new(args: argparse.Namespace) -> int:
    from fcn_jax.plugins.scaffold import write

    folder = write(args.name, args.kind, args.output)
    print(f"{folder}: a {args.kind} named '{args.name}'. Install and test it:")
    print(f"  pip install -e '{folder}[test]'")
    print(f"  python -m pytest {folder}")
    print(f"  fcn-jax plugins check {args.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

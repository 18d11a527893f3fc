"""The command line that every recipe shares: a YAML file holds differences from the defaults, dotted flags override it.

jsonargparse reads both into dataclasses. An unknown key, a wrong type and an impossible value are errors of one line.
"""

import argparse
import difflib
import errno
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from d2v.errors import InputError


@dataclass
class Run:
    """The run.

    Attributes:
        out: folder for everything the run leaves.
        seed: of initial weights, dropout, masks, the order of the data and the split that is held out.
        epochs: passes over the training data; ignored with max_steps.
        max_steps: updates.
        max_minutes: stop, saved, after so much time; a later run with resume goes on.
        resume: go on from the last checkpoint in `out`, exactly; start if there is none.
        precision: fp32, bf16 or fp16; by default what accelerate was configured with.
        eval_every: updates from one evaluation to the next; by default an epoch.
        save_every: updates from one checkpoint to the next; by default as eval_every.
        log_every: updates from one line of log.jsonl to the next.
        keep_last: checkpoints that are kept; the best model is kept besides.
        patience: stop after so many evaluations without a better one.
        max_nonfinite: stop after so many updates in a row whose loss or gradient was not finite; each is skipped.
        gradient_checkpointing: less memory, more time.
        tracker: where accelerate sends the log besides: tensorboard, wandb, ...; by default tensorboard if installed.
    """

    out: str = "runs/d2v"
    seed: int = 0
    epochs: int = 10
    max_steps: int | None = None
    max_minutes: float | None = None
    resume: bool = False
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    eval_every: int | None = None
    save_every: int | None = None
    log_every: int = 10
    keep_last: int = 2
    patience: int | None = None
    max_nonfinite: int = 10
    gradient_checkpointing: bool = False
    tracker: str | None = "auto"

    def __post_init__(self):
        counts = (
            "epochs",
            "max_steps",
            "eval_every",
            "save_every",
            "log_every",
            "keep_last",
            "patience",
            "max_nonfinite",
        )
        at_least(1, "run", self, counts)


@dataclass
class Optim:
    """Optimisation by AdamW.

    Attributes:
        lr: peak learning rate.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of weights with two or more dimensions; biases, norms and scales have none.
        clip: largest norm of the gradient; 0 for any.
        schedule: of the learning rate after warm-up; tri_stage holds it, then lets it fall exponentially.
        warmup: updates, or below 1 the share of all updates, in which the rate rises to its peak.
        hold: share of all updates that tri_stage holds the peak.
        start_scale: the rate at the first update, as a share of the peak.
        final_scale: the rate at the last update, as a share of the peak.
        power: of the polynomial.
        layer_decay: factor of the learning rate from each layer to the one below.
        accumulation: batches on each process for an update.
        freeze_encoder_steps: updates in which the head alone learns.
        ema: decay of a moving average of the weights, such as 0.9999, which is scored and kept; 0 for none.
    """

    lr: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: Literal["linear", "cosine", "tri_stage", "polynomial", "constant"] = "linear"
    warmup: float = 0.1
    hold: float = 0.4
    start_scale: float = 0.0
    final_scale: float = 0.0
    power: float = 1.0
    layer_decay: float = 1.0
    accumulation: int = 1
    freeze_encoder_steps: int = 0
    ema: float = 0.0

    def __post_init__(self):
        at_least(1, "optim", self, ("accumulation",))
        at_least(0, "optim", self, ("lr", "weight_decay", "clip", "warmup", "hold", "freeze_encoder_steps", "ema"))
        if self.ema >= 1:
            raise InputError(f"optim.ema should be below 1, such as 0.9999, not {self.ema:g}")


@dataclass
class Lora:
    """Low-rank adapters; rank 0 trains everything.

    Attributes:
        rank: of the updates.
        alpha: an update is scaled by alpha / rank; by default that is 2.
        dropout: before the updates.
        target_modules: the layers that get one, of q_proj, k_proj, v_proj, out_proj, fc1 and fc2.
    """

    rank: int = 0
    alpha: float | None = None
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])

    def __post_init__(self):
        at_least(0, "lora", self, ("rank", "dropout"))


@dataclass
class Data:
    """The data; without a path the recipe's embedded demo.

    Attributes:
        path: a hub id, or a folder or file as `datasets.load_dataset` takes it.
        name: configuration of the data set.
        train_split: to learn from.
        validation_split: to choose the best checkpoint by; where there is none, a share of train is held out.
        test_split: scored once, with the best checkpoint.
        validation_share: the share of train that is held out where there is no validation split.
        max_train_samples: at most so many rows, drawn by the run's seed.
        max_validation_samples: the same.
        max_test_samples: the same.
        batch_size: most rows in a batch.
        workers: processes that read and prepare batches.
    """

    path: str | None = None
    name: str | None = None
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    validation_share: float = 0.1
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None
    batch_size: int = 16
    workers: int = 0

    def __post_init__(self):
        samples = ("max_train_samples", "max_validation_samples", "max_test_samples")
        at_least(1, "data", self, ("batch_size", *samples))
        at_least(0, "data", self, ("workers",))


def check_mode(config: Any) -> None:
    """Raise InputError where a mode lacks what it needs."""
    if config.mode != "train" and config.model is None:
        raise InputError(f"--mode {config.mode} needs --model, such as {config.run.out}/best")


def at_least(lowest: int, group: str, options: Any, names: tuple[str, ...]) -> None:
    """Raise InputError for the first of these options that is set and below `lowest`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise InputError(f"{group}.{name} should be at least {lowest}, not {value}")


def parse(config_class: type, args: list[str] | None = None, demo: Path | None = None) -> Any:
    """A recipe's configuration from the command line; InputError if it is not valid.

    What the command line says wins over a `--config` file, wherever that stands; of two files the later wins.

    Args:
        config_class: the recipe's `Config`.
        args: the command line, by default the process's.
        demo: YAML file of the embedded demo, the defaults where no `data.path` is given.
    """
    import jsonargparse

    args = sys.argv[1:] if args is None else args

    description = sys.modules[config_class.__module__].__doc__
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, description=description)
    parser.add_argument("--config", action="config", help="YAML file with differences from the defaults.")
    parser.add_class_arguments(config_class)

    def read(args: list[str], file: str = "") -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return parser.instantiate_classes(parser.parse_args(args))
        except (jsonargparse.ArgumentError, ValueError, TypeError) as error:
            raise InputError(file + explain(str(error), parser)) from error

    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, options = finder.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    for file in found.config:
        read(["--config", file], file=f"{file}: ")  # on its own first, so that an error can name it
    args = [*(f"--config={file}" for file in found.config), *options]
    values = read(args)
    if demo is not None and values.data.path is None:
        values = read(["--config", str(demo), *args])
    return config_class(**{each.name: values[each.name] for each in fields(config_class)})


def explain(message: str, parser) -> str:
    """A parser's complaint on one line; an unknown key comes with the known ones, a likely one first."""
    known = [option.removeprefix("--") for option in parser._option_string_actions if option.startswith("--")]
    if match := re.search(
        r"(?:Group '([\w.]+)' does not accept option|[Kk]ey|Option) '([\w.]+)'(?: is not (?:expected|accepted))?",
        message,
    ):
        key = f"{match[1]}.{match[2]}" if match[1] else match[2]
    elif match := re.search(r"[Uu]nrecognized arguments: --([\w.]+)", message):
        key = match[1]
    else:
        return re.sub(r"\s+", " ", message)
    group = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == group] or known
    guess = [name for name in known if name.endswith("." + key)] or difflib.get_close_matches(key, known, n=1)
    return (
        f"unknown option {key!r}; "
        + (f"did you mean {guess[0]!r}? " if guess else "")
        + f"known: {', '.join(siblings)}"
    )


def to_yaml(config: Any) -> str:
    """The configuration as YAML, every value resolved, as `--config` reads it."""
    import yaml

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return plain(asdict(value))
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)


def run(main: Callable[[Any], Any], config_class: type, demo: Path | None = None) -> None:
    """Run a recipe from the command line; exit code 0, 2 for bad input, 130 for an interrupt that was saved."""
    from d2v.training.loop import Interrupted

    try:
        main(parse(config_class, demo=demo))
    except InputError as error:
        # One from a data worker comes with the worker's traceback before it.
        exit_with(2, f"error: {str(error).rpartition('d2v.errors.InputError: ')[2].strip()}")
    except Interrupted as error:
        exit_with(130, f"interrupted: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        exit_with(2, f"error: {error.filename or 'a file'}: {error.strerror}; what was saved before is untouched")


def exit_with(code: int, message: str) -> None:
    """Exit with one line on the terminal."""
    print(re.sub(r"\s*\n\s*", " ", message), file=sys.stderr)
    sys.exit(code)


def write_config(config: Any, folder: Path) -> None:
    """Write the resolved configuration to `config.yaml`, from which the run can be repeated."""
    (folder / "config.yaml").write_text(to_yaml(config), "utf-8")

"""What trackers are told: TensorBoard for real, others as fakes at the border of their packages."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from d2v.config import Recipe, Run
from d2v.errors import InputError
from d2v.training.job import start
from d2v.training.log import open_log
from d2v.training.loop import Progress


class Fake(ModuleType):
    """A tracker's package: what was begun, the configurations, and the points of each run."""

    def __init__(self, name):
        super().__init__(name)
        self.begun, self.configs, self.points = [], [], []
        self.config = SimpleNamespace(update=lambda values, **_: self.configs.append(values))
        self.utils = SimpleNamespace(
            validation=SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
        )
        self.log_params = self.config.update

    def init(self, **options):  # of wandb and trackio
        self.begun.append(options)
        return SimpleNamespace(log=lambda values, step: self.points.append((step, *values)), finish=lambda: None)

    def search_experiments(self, filter_string):  # of mlflow
        return [SimpleNamespace(experiment_id="7")] if "'papers'" in filter_string else []

    def start_run(self, **options):
        self.begun.append(options)
        return SimpleNamespace(info=SimpleNamespace(run_id=options["run_id"] or "of the server"))

    def log_metrics(self, values, step):
        self.points.append((step, *values))

    def end_run(self):
        pass


@pytest.fixture
def package(request, monkeypatch):
    from accelerate import tracking
    from accelerate.utils import LoggerType

    name = request.param
    monkeypatch.setitem(sys.modules, name, fake := Fake(name))
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType(name)])
    return fake


def session(out, tracker, step, evaluated, updates):
    """A session of a run that goes on after `step` updates, and evaluates every second one."""
    run = Run(str(out), tracker=tracker, project="papers", resume=True, max_steps=8)
    log = open_log(start(Recipe(run=run)), Progress(step=step, evaluated=evaluated), 8)
    for now in updates:
        log.write(now, {"loss": 1 / now})
        if now % 2 == 0:
            log.write(now, {"eval_wer": 1 / now})
    log.close()


def two_sessions(out, tracker):
    """A run that was cut off after its fifth update, of which the last checkpoint has three."""
    session(out, tracker, 0, 0, range(1, 6))
    session(out, tracker, 3, 2, range(4, 9))
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 8, 8]


ONCE = [(1, "loss"), (2, "loss"), (2, "eval_wer"), (3, "loss"), (4, "loss"), (4, "eval_wer"), (5, "loss")]
ONCE += [(6, "loss"), (6, "eval_wer"), (7, "loss"), (8, "loss"), (8, "eval_wer")]


@pytest.mark.parametrize("package", ["wandb", "trackio", "mlflow"], indirect=True)
def test_a_resumed_run_goes_on_with_its_curves(package, tmp_path, monkeypatch):
    name = package.__name__
    monkeypatch.chdir(tmp_path)
    two_sessions(tmp_path / "runs/asr", name)
    first, second = package.begun
    known = json.loads((tmp_path / "runs/asr/tracker.json").read_text())
    if name == "mlflow":
        assert (first["run_id"], second["run_id"], first["run_name"]) == (None, "of the server", "runs/asr")
        assert first["experiment_id"] == "7" and first["tags"] == {"d2v": known["id"]}
    else:
        assert first == second and (first["project"], first["resume"]) == ("papers", "allow")
        own = {"wandb": ("runs/asr", known["id"]), "trackio": (f"runs/asr {known['id']}", None)}
        assert (first["name"], first.get("id")) == own[name]
    assert package.points == ONCE  # none twice
    (config,) = package.configs
    assert (config["run.max_steps"], config["optim.lr"], config["data.path"]) == (8, 3e-5, "null")
    assert all(isinstance(value, int | float | str) for value in config.values())


def test_another_run_has_another_id(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    ids = set()
    for name in "ab":
        session(tmp_path / name, "tensorboard", 0, 0, [1])
        ids.add(json.loads((tmp_path / name / "tracker.json").read_text())["id"])
    assert len(ids) == 2


def test_tensorboard_draws_each_point_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    two_sessions(tmp_path, "tensorboard")
    found = accumulator.EventAccumulator(str(tmp_path / "papers"))
    found.Reload()
    assert [(point.step, point.value) for point in found.Scalars("loss")] == [
        (step, pytest.approx(1 / step)) for step in range(1, 9)
    ]
    assert [point.step for point in found.Scalars("eval_wer")] == [2, 4, 6, 8]
    (options,) = (tmp_path / "papers").glob("*/hparams.yml")
    assert "optim.lr: 3.0e-05" in options.read_text()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line(name, tmp_path, monkeypatch):
    from accelerate import tracking

    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(InputError, match=f"run.tracker {name}: not installed; pip install {name}, or --run.tracker"):
        start(Recipe(run=Run(str(tmp_path), tracker=name)))


@pytest.mark.parametrize("package", ["wandb"], indirect=True)
def test_a_tracker_that_cannot_be_reached_is_one_line(package, tmp_path, monkeypatch):
    def refuse(**options):
        raise RuntimeError("no API key\nmore")

    monkeypatch.setattr(package, "init", refuse)
    with pytest.raises(InputError, match=r"run.tracker wandb: no API key \(--run.tracker null"):
        session(tmp_path, "wandb", 0, 0, [1])

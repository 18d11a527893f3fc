"""Runs: the job, the model it starts from, the loop and its parts, and a run's output."""

from d2v.training.job import start
from d2v.training.loop import fit
from d2v.training.model import build
from d2v.training.prediction import predict, predict_test, test_split
from d2v.training.report import About, finish, timed

__all__ = ["About", "build", "finish", "fit", "predict", "predict_test", "start", "test_split", "timed"]

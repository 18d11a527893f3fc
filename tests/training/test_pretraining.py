"""The options of pretraining, and the alarm."""

import math
from dataclasses import replace

import pytest

from d2v.config import Optim, Run
from d2v.errors import InputError
from d2v.models.text import Data2VecTextConfig, Data2VecTextModel
from d2v.training.pretraining import CollapseAlarm, half_life
from d2v.training.teaching import Alarm, Auxiliary, Pretraining, Teaching, student_and_teacher
from tests.helpers import make_job
from tests.tiny import TINY_TEXT

HEALTHY = {
    "prediction_rank": 50.0,
    "target_rank": 60.0,
    "unexplained": 0.4,
    "target_deviation": 0.9,
    "prediction_deviation": 0.6,
}
NARROW = HEALTHY | {"target_rank": 11.0, "unexplained": 0.1}


@pytest.mark.parametrize(
    ("total", "first", "last", "rise", "options"),
    [
        (400_000, 0.999, 0.9999, 30_000, {"half_life": 0.00173, "final_half_life": 0.01733, "rise": 0.075}),  # speech
        (1_000_000, 0.999, 0.9999, 300_000, {"half_life": 0.000693, "final_half_life": 0.00693, "rise": 0.3}),  # text
        (500_000, 0.9998, 0.9998, 0, {"half_life": 0.00693, "final_half_life": 0.00693, "rise": 0.0}),  # images
    ],
)
def test_shares_of_a_run_give_the_published_decays(total, first, last, rise, options):
    teaching = Teaching(**options)
    assert teaching.decay(0, total) == pytest.approx(first, abs=2e-6)
    assert teaching.decay(rise // 2, total) == pytest.approx((first + last) / 2, abs=2e-6)
    for step in (rise, rise + 1, total - 1):
        assert teaching.decay(step, total) == pytest.approx(last, abs=2e-6)
    # The same at another scale: a tenth of the updates, a tenth of the half-life.
    assert half_life(teaching.decay(total // 10, total // 10)) == pytest.approx(half_life(last) / 10, rel=1e-2)


def test_a_half_life_of_nothing_is_the_student_itself():
    assert Teaching(half_life=0.0, final_half_life=0.0).decay(3, 100) == 0
    assert half_life(0.0) == 0
    assert half_life(0.5) == pytest.approx(1)
    assert math.isclose(Teaching(half_life=0.01, final_half_life=0.01).decay(0, 100), 0.5)


def test_a_teacher_that_is_frozen_forgets_nothing():
    """As a half-life of `.inf` says, and one of so many updates that a float cannot tell."""
    for length in (math.inf, 1e18):
        decay = Teaching(half_life=length, final_half_life=length).decay(3, 100)
        assert decay == 1 and half_life(decay) == math.inf


def test_the_auxiliary_weight_falls_or_stays():
    assert [Auxiliary(2.0, until=0.5).at(step, 100) for step in (0, 25, 50, 99)] == [2.0, 1.0, 0.0, 0.0]
    assert [Auxiliary(2.0).at(step, 100) for step in (0, 99)] == [2.0, 2.0]
    assert Auxiliary().at(0, 100) == 0


def test_what_has_no_meaning_is_refused():
    for options, match in (
        ({"teacher": Teaching(weight=0.0)}, "teacher.weight and auxiliary.weight are 0"),
        (
            {"teacher": Teaching(weight=0.0), "auxiliary": Auxiliary(weight=1.0, until=0.5)},
            "auxiliary.until 0.5: without a teacher",
        ),
        ({"run": Run(patience=3)}, "run.patience has no meaning in pretraining"),
        ({"run": Run(metric="loss")}, "run.metric has no meaning"),
        ({"optim": Optim(ema=0.99)}, "optim.ema has no meaning"),
        ({"optim": Optim(freeze_encoder_steps=3)}, "optim.freeze_encoder_steps has no meaning"),
    ):
        with pytest.raises(InputError, match=match):
            Pretraining(**options)
    for options, match in (({"layers": 0}, "teacher.layers"), ({"beta": -1.0}, "teacher.beta")):
        with pytest.raises(InputError, match=match):
            Teaching(**options)
    for name in ("rank", "unexplained", "deviation", "patience"):  # -1 lines in a row were there at once
        with pytest.raises(InputError, match=f"alarm.{name} should be at least 0, not -1"):
            Alarm(**{name: -1})


def watch(lines: list[dict], alarm: Alarm | None = None, ready: int = 0) -> int | None:
    """The line at which the alarm goes off."""
    vigil = CollapseAlarm(alarm or Alarm())
    for i, figures in enumerate(lines):
        try:
            vigil.check(figures, i, ready=i >= ready)
        except InputError as error:
            assert "the targets have collapsed" in str(error) and "lower optim.lr" in str(error)
            return i
    return None


def test_the_alarm_takes_some_lines_in_a_row():
    assert watch([HEALTHY] * 50) is None
    assert watch([HEALTHY] * 3 + [NARROW] * 9) == 7
    assert watch([NARROW] * 4 + [HEALTHY] + [NARROW] * 4) is None
    assert watch([NARROW] * 50, ready=20) == 24  # not before the warm-up is over
    assert watch([NARROW] * 50, Alarm(patience=0)) is None


def test_neither_sign_alone_is_one():
    assert watch([HEALTHY | {"target_rank": 9.0}] * 50) is None  # images begin so, and recover
    assert watch([HEALTHY | {"unexplained": 0.1}] * 50) is None
    assert watch([HEALTHY | {"target_deviation": 0.001}] * 50) == 4
    assert watch([HEALTHY | {"prediction_deviation": 0.001}] * 50) == 4
    assert watch([HEALTHY | {"target_rank": 2.5, "prediction_rank": 1.1, "unexplained": 0.6}] * 50) == 4
    assert watch([{"front_rank": 1.0, "front_deviation": 0.0}] * 50) is None  # there is no teacher


def test_the_alarm_is_kept_over_a_resume():
    first, second = CollapseAlarm(Alarm()), CollapseAlarm(Alarm())
    for step in range(4):
        first.check(NARROW, step)
    second.load_state_dict(first.state_dict())
    with pytest.raises(InputError, match="update 4: the targets have collapsed, to an effective rank of 11.0 with 10%"):
        second.check(NARROW, 4)


def test_a_model_of_few_blocks_is_taught_by_all_unless_another_number_is_given(tmp_path, capsys):
    model = Data2VecTextModel(Data2VecTextConfig(**TINY_TEXT, vocab_size=50), add_pooling_layer=False)
    depth = model.config.num_hidden_layers

    def teacher(options):
        config = Pretraining(teacher=options, run=Run(out=str(tmp_path)))
        return student_and_teacher(replace(make_job(), config=config), model, 0)[1].layers

    assert depth < Teaching().layers and teacher(Teaching()) == depth
    assert f"teacher: the outputs of all {depth} blocks are learnt from" in capsys.readouterr().out
    assert teacher(Teaching(layers=1)) == 1 and not capsys.readouterr().out
    with pytest.raises(InputError, match=f"teacher.layers should be 1 to {depth}"):
        teacher(Teaching(layers=depth + 1))

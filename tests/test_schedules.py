"""Learning rates against torch's OneCycleLR, and what they do when a run is saved, taken up and extended."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import OneCycleLR

import config
from errors import UserError
from optim.schedules import make_scheduler

LR = 3e-3


def make(scheduler="cos", iterations=100, warmup=0.05, final_div_factor=0.05, decay=0.2, lr=LR, groups=1):
    args = config.parse_args(
        [
            "--scheduler",
            scheduler,
            "--iterations",
            str(iterations),
            "--warmup_percent",
            str(warmup),
            "--lr",
            str(lr),
            "--final_div_factor",
            str(final_div_factor),
            "--decay_percent",
            str(decay),
        ]
    )
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)]
    return make_scheduler(torch.optim.SGD(parameters, lr=123.0), args)


def advance(schedule, steps):
    """Rates used at the next steps."""
    rates = []
    for _ in range(steps):
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.step()
    return rates


def rates(*args, **kwargs):
    schedule = make(*args, **kwargs)
    return advance(schedule, schedule.horizon)


# the shapes


def one_cycle(scheduler, iterations, warmup, final_div_factor):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    cycle = OneCycleLR(
        optimizer,
        max_lr=LR,
        total_steps=iterations,
        pct_start=warmup,
        div_factor=100,
        final_div_factor=final_div_factor,
        anneal_strategy=scheduler,
        cycle_momentum=False,
    )
    found = []
    for step in range(iterations):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < iterations - 1:
            cycle.step()
    return found


@pytest.mark.parametrize("final_div_factor", [0.05, 1.0, 10.0])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.2, 0.333, 1.0])
@pytest.mark.parametrize("iterations", [2, 7, 21, 250])
@pytest.mark.parametrize("scheduler", ["cos", "linear"])
def test_rates_are_those_of_one_cycle(scheduler, iterations, warmup, final_div_factor):
    expected = one_cycle(scheduler, iterations, warmup, final_div_factor)
    assert rates(scheduler, iterations, warmup, final_div_factor) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scheduler", ["cos", "linear", "wsd"])
@pytest.mark.parametrize(
    ("iterations", "warmup"), [(1, 0.05), (1, 0.0), (1, 1.0), (20, 0.05), (2, 0.5), (3, 1.0)]
)
def test_shortest_runs_have_rates_within_the_range(scheduler, iterations, warmup):
    assert all(
        LR / 100 <= rate <= LR * (1 + 1e-12) for rate in rates(scheduler, iterations, warmup, decay=0.0)
    )


def test_rate_starts_at_a_hundredth():
    assert rates("cos", warmup=0.2)[0] == pytest.approx(LR / 100)


def test_rate_ends_at_a_fifth_by_default():
    assert rates("cos")[-1] == pytest.approx(0.2 * LR)


def test_none_is_constant():
    assert rates("none") == [LR] * 100


def test_wsd_warms_up_linearly():
    assert rates("wsd", warmup=0.1)[:10] == pytest.approx(
        [LR / 100 + (LR - LR / 100) * step / 9 for step in range(10)]
    )


def test_wsd_is_stable_between_warm_up_and_decay():
    assert rates("wsd", warmup=0.1)[9:80] == [LR] * 71


def test_wsd_decays_linearly_to_the_end_rate():
    assert rates("wsd", warmup=0.1)[79:] == pytest.approx(
        [LR + (0.2 * LR - LR) * step / 20 for step in range(21)]
    )


def test_every_group_gets_the_rate():
    schedule = make("cos", groups=3)
    advance(schedule, 12)
    assert schedule.get_last_lr() == [schedule.rate_at(12)] * 3


@pytest.mark.parametrize("scheduler", ["cos", "linear", "wsd", "none"])
def test_rate_at_tells_every_step_in_advance(scheduler):
    schedule = make(scheduler, 30)
    assert [schedule.rate_at(step) for step in range(30)] == advance(schedule, 30)


@pytest.mark.parametrize("scheduler", ["cos", "linear", "wsd"])
def test_description_names_start_peak_and_end(scheduler):
    assert (
        make(scheduler, warmup=0.2).describe()
        == f"learning rate ({scheduler}): 3e-05 at the start, 0.003 at the peak (step 19), 0.0006 at the end"
    )


# saved and taken up


@pytest.mark.parametrize("taken", [0, 3, 20, 60, 99, 100])
@pytest.mark.parametrize("scheduler", ["cos", "linear", "wsd", "none"])
def test_resumed_schedule_goes_on_as_the_unbroken_one(scheduler, taken):
    first, second = make(scheduler), make(scheduler)
    advance(first, taken)
    second.load_state_dict(first.state_dict())
    assert advance(second, 100 - taken) == rates(scheduler)[taken:]


def test_resuming_without_a_change_says_nothing():
    first = make()
    advance(first, 40)
    assert make().load_state_dict(first.state_dict()) is None


def test_state_is_plain_and_loads_with_weights_only(tmp_path):
    schedule = make()
    advance(schedule, 5)
    torch.save(schedule.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == schedule.state_dict()


def state_after(steps, *args, **kwargs):
    schedule = make(*args, **kwargs)
    advance(schedule, steps)
    return schedule.state_dict()


@pytest.mark.parametrize("iterations", [101, 150, 1000])
def test_longer_horizon_without_extend_is_refused_and_names_the_flag(iterations):
    with pytest.raises(
        UserError,
        match=(
            rf"--iterations {iterations} is more than the 100 .*--extend continue .*--extend restart"
            r" .*--extend rejoin"
        ),
    ):
        make(iterations=iterations).load_state_dict(state_after(40))


@pytest.mark.parametrize("extend", [None, "continue", "restart", "rejoin"])
@pytest.mark.parametrize("iterations", [30, 99])
def test_shorter_horizon_is_refused(iterations, extend):
    with pytest.raises(UserError, match=f"--iterations {iterations} is less than"):
        make(iterations=iterations).load_state_dict(state_after(40), extend)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lr", {"lr": 1e-3}),
        ("scheduler", {"scheduler": "linear"}),
        ("warmup_percent", {"warmup": 0.1}),
        ("final_div_factor", {"final_div_factor": 1.0}),
        ("decay_percent", {"decay": 0.3}),
    ],
)
def test_other_settings_are_refused_by_name(name, change):
    with pytest.raises(UserError, match=f"--{name} is"):
        make(**change).load_state_dict(state_after(40))


def test_state_of_the_authors_scheduler_is_refused():
    with pytest.raises(UserError, match="was not written by this training loop"):
        make().load_state_dict({"total_steps": 100, "base_lrs": [LR], "last_epoch": 40})


# extended


def extended(scheduler, taken, horizon, how, **shape):
    """(the last rate used before, rates from then on) of a run of 100 steps that is extended."""
    schedule = make(scheduler, horizon, **shape)
    schedule.load_state_dict(state_after(taken, scheduler, 100, **shape), how)
    return rates(scheduler, 100, **shape)[taken - 1], advance(schedule, horizon - taken)


QUICK = settings(max_examples=30)
SHAPES = st.sampled_from(["cos", "linear", "wsd"])


@QUICK
@given(SHAPES, st.integers(6, 100), st.integers(101, 1000))
def test_continue_never_raises_the_rate_after_the_warm_up(scheduler, taken, horizon):
    before, after = extended(scheduler, taken, horizon, "continue")
    assert all(
        later <= earlier * (1 + 1e-12) for earlier, later in zip([before, *after], after, strict=False)
    )


@QUICK
@given(SHAPES, st.integers(1, 29), st.integers(101, 1000))
def test_continue_in_the_warm_up_rises_without_a_jump(scheduler, taken, horizon):
    before, after = extended(scheduler, taken, horizon, "continue", warmup=0.3)
    steepest = max(
        later - earlier
        for earlier, later in zip(
            rates(scheduler, warmup=0.3), rates(scheduler, warmup=0.3)[1:], strict=False
        )
    )
    assert (
        max(later - earlier for earlier, later in zip([before, *after], after, strict=False)) < 2.5 * steepest
    )


@QUICK
@given(SHAPES, st.integers(1, 28), st.integers(101, 1000))
def test_continue_in_the_warm_up_still_reaches_the_peak(scheduler, taken, horizon):
    assert max(extended(scheduler, taken, horizon, "continue", warmup=0.3)[1]) == pytest.approx(LR)


@pytest.mark.parametrize("scheduler", ["cos", "linear", "wsd"])
def test_continue_at_the_last_step_of_the_warm_up_still_reaches_the_peak(scheduler):
    assert max(extended(scheduler, 29, 200, "continue", warmup=0.3)[1]) == pytest.approx(LR)


@QUICK
@given(
    SHAPES, st.sampled_from(["continue", "restart", "rejoin"]), st.integers(1, 100), st.integers(102, 1000)
)
def test_extended_run_ends_at_the_end_rate(scheduler, how, taken, horizon):
    assert extended(scheduler, taken, horizon, how)[1][-1] == pytest.approx(0.2 * LR)


@QUICK
@given(SHAPES, st.integers(1, 100), st.integers(140, 1000))
def test_restart_warms_up_to_the_peak(scheduler, taken, horizon):
    _, after = extended(scheduler, taken, horizon, "restart", warmup=0.2)
    rise = 0.2 * (horizon - taken)
    assert max(after[int(rise) - 1 : int(rise) + 2]) == max(after) and max(after) > 0.9 * LR


@QUICK
@given(SHAPES, st.integers(1, 100), st.integers(140, 1000))
def test_restart_begins_where_the_rate_was(scheduler, taken, horizon):
    before, after = extended(scheduler, taken, horizon, "restart", warmup=0.2)
    assert after[0] == pytest.approx(before)


@pytest.mark.parametrize("how", ["continue", "restart", "rejoin"])
def test_constant_rate_stays_constant(how):
    assert extended("none", 60, 200, how)[1] == [LR] * 140


@QUICK
@given(SHAPES, st.sampled_from([0.05, 0.2, 0.333]), st.integers(1, 100), st.integers(101, 1000))
def test_rejoin_goes_on_at_the_very_rates_of_the_longer_plan(scheduler, warmup, taken, horizon):
    assert (
        extended(scheduler, taken, horizon, "rejoin", warmup=warmup)[1]
        == rates(scheduler, horizon, warmup)[taken:]
    )


def test_rejoined_plan_can_be_rejoined_again_and_continued():
    first = make(iterations=200)
    first.load_state_dict(state_after(60), "rejoin")
    advance(first, 100)
    second = make(iterations=300)
    second.load_state_dict(first.state_dict(), "rejoin")
    assert advance(second, 50) == rates("cos", 300)[160:210]
    third = make(iterations=400)
    third.load_state_dict(second.state_dict(), "continue")
    assert third.legs[-1].top_rate == rates("cos", 300)[209]


def test_rejoin_in_the_warm_up_still_reaches_the_peak_where_the_longer_plan_does():
    after = extended("cos", 10, 200, "rejoin", warmup=0.3)[1]
    assert after.index(max(after)) == 59 - 10


def test_rejoin_tells_the_rates_before_and_after():
    line = make(iterations=150, warmup=0.2).load_state_dict(state_after(100, warmup=0.2), "rejoin")
    assert line.startswith(
        "extended from 100 to 150 steps (rejoin): learning rate before 0.0006 at 99; after: 0.00146 at 100, "
    )


@pytest.mark.parametrize("how", ["continue", "restart"])
def test_other_extensions_are_recorded_in_the_words_that_they_always_had(how):
    schedule = make(iterations=200)
    schedule.load_state_dict(state_after(60), how)
    assert [set(leg) for leg in schedule.plan()["legs"]] == [
        {"begin", "end", "start_rate", "top_rate", "rise"}
    ] * 2


def test_wsd_extended_in_its_stable_phase_stays_at_the_peak():
    assert extended("wsd", 50, 300, "continue")[1][:190] == [LR] * 190


def test_wsd_extended_in_its_stable_phase_equals_one_planned_so():
    assert extended("wsd", 50, 300, "continue")[1] == pytest.approx(rates("wsd", 300)[50:])


def test_extension_is_told_with_the_rates_before_and_after():
    line = make(iterations=200).load_state_dict(state_after(100), "continue")
    assert line.startswith(
        "extended from 100 to 200 steps (continue): learning rate before 0.0006 at 99; after: 0.0006 at 100, "
    )


@pytest.mark.parametrize("scheduler", ["cos", "linear", "wsd", "none"])
@pytest.mark.parametrize("how", ["continue", "restart", "rejoin"])
def test_extension_survives_being_saved_again(scheduler, how):
    first = make(scheduler, 200)
    first.load_state_dict(state_after(60, scheduler), how)
    advance(first, 20)
    second = make(scheduler, 200)
    second.load_state_dict(first.state_dict())
    assert advance(second, 120) == extended(scheduler, 60, 200, how)[1][20:]


def test_extension_may_stay_on_the_command_line():
    first = make(iterations=200)
    first.load_state_dict(state_after(60), "restart")
    advance(first, 20)
    second = make(iterations=200)
    second.load_state_dict(first.state_dict(), "restart")
    assert advance(second, 120) == advance(first, 120)


def test_run_can_be_extended_twice():
    first = make(iterations=200)
    first.load_state_dict(state_after(100), "continue")
    advance(first, 100)
    second = make(iterations=300)
    second.load_state_dict(first.state_dict(), "restart")
    assert advance(second, 100)[-1] == pytest.approx(0.2 * LR)


# trapezoid; decay and momentum of groups


def trapezoid(iterations=100, warmup=0.2, warmdown=0.3, final=0.1):
    """A schedule of one group whose rate, decay and momentum are all scheduled."""
    ratios = {"warmup_ratio": warmup, "warmdown_ratio": warmdown, "final_lr_frac": final}
    words = [word for name, value in ratios.items() for word in (f"--{name}", str(value))]
    args = config.parse_args(
        [
            *("--scheduler", "trapezoid", "--lr", str(LR), "--iterations", str(iterations)),
            *("--decay_schedule", "linear", *words),
        ]
    )
    group = {"params": [torch.nn.Parameter(torch.zeros(1))], "full_decay": 0.2}
    return make_scheduler(torch.optim.SGD([{**group, "momentum_course": (0.85, 0.95, 50)}], lr=123.0), args)


def courses(schedule, steps):
    """Rate, decay and momentum at each of the next steps."""
    found = []
    for _ in range(steps):
        group = schedule.optimizer.param_groups[0]
        found.append((group["lr"], group["weight_decay"], group["momentum"]))
        schedule.step()
    return found


def lengthened(taken, horizon, how):
    """The courses of a run of 100 steps that is extended after some: before, and from then on."""
    first, second = trapezoid(), trapezoid(horizon)
    before = courses(first, taken)
    second.load_state_dict(first.state_dict(), how)
    return before, courses(second, horizon - taken)


def test_trapezoid_rises_from_its_first_step_and_falls_after_its_last():
    found = [rate for rate, _, _ in courses(trapezoid(), 100)]
    assert found[:20] == pytest.approx([LR * (step + 1) / 20 for step in range(20)])
    assert found[19:71] == [LR] * 52
    assert found[70:] == pytest.approx([LR * (1 - 0.9 * step / 30) for step in range(30)])


@pytest.mark.parametrize("taken", [0, 10, 20, 50, 99])
def test_rate_decay_and_momentum_jump_nowhere_on_a_resume(taken):
    first, second = trapezoid(), trapezoid()
    courses(first, taken)
    second.load_state_dict(first.state_dict())
    assert courses(second, 100 - taken) == courses(trapezoid(), 100)[taken:]


@pytest.mark.parametrize("taken", [5, 19, 20, 50, 70, 90])
def test_an_extension_that_continues_goes_on_from_rate_and_decay(taken):
    before, after = lengthened(taken, 200, "continue")
    found = before[-1:] + after
    steps = [later[0] - earlier[0] for earlier, later in zip(found, after, strict=False)]
    assert max(map(abs, steps)) <= 1.001 * LR / 20  # as steep as the warm-up
    decays = [decay for _, decay, _ in found]
    assert decays == sorted(decays, reverse=True) and decays[-1] > 0


@pytest.mark.parametrize("how", ["continue", "restart"])
@pytest.mark.parametrize("taken", [75, 90, 100])
def test_an_extension_shorter_than_the_warm_down_does_not_jump(taken, how):
    before, after = lengthened(taken, 110, how)
    found = [rate for rate, _, _ in before[-1:] + after]
    falling = found[found.index(max(found)) :]
    drops = [earlier - later for earlier, later in pairwise(falling)]
    assert min(drops) >= 0 and max(drops) <= 1.001 * drops[-1]


def test_an_extension_in_the_warm_up_is_the_warm_up_of_the_first_plan():
    before, after = lengthened(5, 200, "continue")
    assert [rate for rate, _, _ in (before + after)[:20]] == pytest.approx(
        [LR * (step + 1) / 20 for step in range(20)]
    )


def test_a_rejoined_plan_has_the_courses_of_one_that_was_planned_so_long():
    assert lengthened(60, 200, "rejoin")[1] == courses(trapezoid(200), 200)[60:]


def test_a_restart_has_the_whole_decay_again():
    assert lengthened(60, 200, "restart")[1][0][1] == pytest.approx(0.2)


def test_momentum_of_a_run_does_not_depend_on_its_length():
    short, long = (courses(trapezoid(steps), 60) for steps in (60, 500))
    assert [momentum for _, _, momentum in short] == [momentum for _, _, momentum in long]


def test_decay_is_constant_unless_it_is_scheduled():
    assert make().plan()["shape"].keys().isdisjoint({"decay_schedule", "warmup_ratio"})

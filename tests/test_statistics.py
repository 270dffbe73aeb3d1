import math

import pytest

from minigpt4.statistics import Estimate, Rate, text


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    # Newcombe (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, total, low, high):
    assert Rate(successes, total).interval == pytest.approx((low, high), abs=5e-5)


def test_wilson_knows_nothing_of_no_cases_and_refuses_nonsense():
    assert Rate(0, 0).interval == (0.0, 1.0)
    for arguments in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="proportion"):
            _ = Rate(*arguments).interval


def test_rates_add_up_and_print():
    rate = Rate.from_outcomes([True, True, False]) + Rate(1, 1)
    assert rate == Rate(3, 4)
    assert rate.share == 0.75
    assert str(rate) == "75 % (30–95)"
    assert str(Rate(0, 0)) == "–"
    assert math.isnan(Rate(0, 0).share)


def test_bootstrap_gives_a_normal_interval_for_a_mean_and_repeats():
    cases = [float(i % 10) for i in range(400)]
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    found = Estimate.bootstrapped(cases, mean)
    spread = 1.96 * (8.25 / 400) ** 0.5
    assert (found.low, found.high) == pytest.approx((4.5 - spread, 4.5 + spread), abs=0.05)
    assert Estimate.bootstrapped(cases, mean) == found
    assert Estimate.bootstrapped([3.0], mean) == Estimate(3.0, 3.0, 3.0, 1)
    for unknown in (Estimate.bootstrapped([1.0], lambda values: math.nan), Estimate.bootstrapped([], mean)):
        assert all(map(math.isnan, (unknown.low, unknown.high)))


def test_one_form_of_text_for_every_figure():
    rate = Rate.from_outcomes([True, False, None, True])
    assert rate.to_json() == {
        "value": 0.5, "low": pytest.approx(0.15, abs=0.01), "high": pytest.approx(0.85, abs=0.01), "total": 4,
        "successes": 2, "undecided": 1,
    }  # fmt: skip
    assert text(rate.to_json()) == "50 (15–85, 1 undecided)"
    assert text(rate.to_json(), digits=1) == "50.0 (15.0–85.0, 1 undecided)"
    assert text(rate.to_json(), "of") == "2/4 (15–85 %, 1 undecided)"
    assert text(Estimate(7.104, 6.8, 7.4, 9).to_json(), "words") == "7.10 (6.80–7.40)"
    assert text(Estimate(0.5, math.nan, math.nan, 9).to_json(), "") == "0.50"
    assert text(None) == text(Rate(0, 0).to_json()) == "–"

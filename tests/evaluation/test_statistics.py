import math

import pytest

from minigpt4.evaluation.statistics import Rate, wilson


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    # Newcombe (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(successes, total, low, high):
    assert wilson(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_widens_with_confidence_and_refuses_nonsense():
    assert wilson(5, 10, 0.99)[0] < wilson(5, 10, 0.9)[0]
    assert wilson(0, 0) == (0.0, 1.0)
    for arguments in ((3, 2), (-1, 2), (1, 2, 1.0)):
        with pytest.raises(ValueError, match=r"proportion|confidence"):
            wilson(*arguments)


def test_rates_add_up_and_print():
    rate = Rate.of([True, True, False]) + Rate(1, 1)
    assert rate == Rate(3, 4)
    assert rate.share == 0.75
    assert str(rate) == "75 % (30–95)"
    assert str(Rate(0, 0)) == "–"
    assert math.isnan(Rate(0, 0).share)

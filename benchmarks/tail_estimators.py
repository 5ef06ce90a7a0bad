"""How well estimators of the tail keep a false-alarm budget. Figures of docs/decisions/0002.

``python -m benchmarks.tail_estimators [--frames 264] [--rate 1e-3] [--repetitions 1000]``
"""

import argparse
import json
from collections.abc import Callable

import numpy as np
from scipy import stats

from station import calibration
from station.calibration import Scores, Tail, fit_tail

DISTRIBUTIONS = {
    "normal": stats.norm(100, 10),
    "gumbel": stats.gumbel_r(100, 10),
    "gamma": stats.gamma(3, scale=10),
    "lognormal": stats.lognorm(0.5, scale=100),
    "t5": stats.t(5, loc=100, scale=10),
}


def without_prior(scores: Scores) -> Tail:
    """The station's fit, its shape not drawn towards 0."""
    tail = fit_tail(scores)
    n = tail.n_exceedances
    return tail.model_copy(update={"shape": tail.shape * (n + calibration.SHAPE_PRIOR_WEIGHT) / n})


def exponential(scores: Scores) -> Tail:
    """Shape 0; the scale is the mean excess."""
    tail = fit_tail(scores)
    excess = scores[scores > tail.level] - tail.level
    return tail.model_copy(update={"shape": 0.0, "scale": float(excess.mean())})


def weighted_moments(scores: Scores) -> Tail:
    """Probability-weighted moments: Hosking & Wallis, Technometrics 29 (1987) 339-349."""
    tail = fit_tail(scores)
    x = np.sort(scores[scores > tail.level] - tail.level)
    a0 = x.mean()
    a1 = (x * (1 - (np.arange(1, x.size + 1) - 0.35) / x.size)).mean()
    return tail.model_copy(update={"shape": float(2 - a0 / (a0 - 2 * a1)), "scale": float(2 * a0 * a1 / (a0 - 2 * a1))})


ESTIMATORS: dict[str, Callable[[Scores], Tail]] = {
    "chosen": fit_tail,
    "without_prior": without_prior,
    "weighted_moments": weighted_moments,
    "exponential": exponential,
}


def main() -> None:
    """Print a table, then the same as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=264)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--repetitions", type=int, default=1000)
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'':18}{'let through / asked, median':>30}{'scatter of the threshold':>28}")
    for name, distribution in DISTRIBUTIONS.items():
        true = distribution.isf(options.rate)
        unit = distribution.isf(0.05) - distribution.median()
        samples = distribution.rvs((options.repetitions, options.frames), random_state=np.random.default_rng(0))
        print(name)
        for estimator, fit in ESTIMATORS.items():
            thresholds = np.array([fit(scores).quantile(options.rate) for scores in samples])
            let_through = float(np.median(distribution.sf(thresholds)) / options.rate)
            scatter = float(np.sqrt(((thresholds - true) ** 2).mean()) / unit)
            results.setdefault(estimator, {})[name] = {"let_through": let_through, "scatter": scatter}
            print(f"  {estimator:16}{let_through:30.2f}{scatter:28.2f}")
    print(json.dumps({**vars(options), "results": results}))


if __name__ == "__main__":
    main()

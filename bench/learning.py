"""How long until CartPole is solved: `examples/apex.py` beside Stable-Baselines3's DQN.

    python bench/learning.py --seeds 10 --json learning.json
    python bench/learning.py --env LunarLander-v3 --seeds 5 --curves lunar_lander.png

Both run with each seed, one at a time and in turn, to the same criterion: a mean return of at least
475 over 20 greedy episodes, and then over 100 others. What counts is the wall time from the start
of the training. The ratio of the medians comes with a bootstrap interval: seeds are drawn with
replacement, each with both of its runs. Another task than CartPole is for `apex.py` alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
APEX, SB3 = "examples/apex.py", "SB3's DQN"
CARTPOLE = "CartPole-v1"
RESAMPLES = 10_000


def run(command: list, seed: int, time_limit: float) -> dict:
    """Return what one run wrote; the time limit where it was not solved."""
    with tempfile.TemporaryDirectory() as out:
        limits = ["--time-limit", str(time_limit)]
        command = [*map(str, command), "--seed", str(seed), "--out", out, *limits]
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL, timeout=time_limit + 120)
        result = json.loads((Path(out) / "result.json").read_text())
    solved = result["solved"]
    seconds = result["seconds_to_criterion"] if solved else time_limit
    outcome = {"seed": seed, "solved": solved, "seconds": seconds, "rows": result["rows"]}
    if "final_mean_return" in result:
        outcome |= {"final": result["final_mean_return"], "returns": result["returns"]}
    return outcome


def interval(ours: list[float], theirs: list[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the ratio of the medians."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(ours), size=(RESAMPLES, len(ours)))
    medians = [np.median(np.asarray(seconds)[drawn], axis=1) for seconds in (ours, theirs)]
    low, high = np.quantile(medians[0] / medians[1], [0.025, 0.975])
    return float(low), float(high)


def save_curves(outcomes: list[dict], env: str, path: Path) -> None:
    """Draw the greedy returns of all runs over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for outcome in outcomes:
        seconds = [record["seconds"] for record in outcome["returns"]]
        greedy = [record["greedy"] for record in outcome["returns"]]
        label = f"seed {outcome['seed']}: then {outcome['final']:.0f} over 100 new episodes"
        axes.plot(seconds, greedy, marker=".", label=label)
    axes.set(xlabel="seconds", ylabel="mean return of 20 greedy episodes", title=env)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run both with every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--env", default=CARTPOLE, help="the task, one of apex.py's")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--sb3-python", default=sys.executable, help="a Python that has SB3")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds of each training")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--curves", type=Path, help="picture of apex.py's runs to write")
    options = parser.parse_args()
    contenders = {APEX: [sys.executable, ROOT / "examples/apex.py", "--env", options.env]}
    if options.env == CARTPOLE:
        contenders[SB3] = [options.sb3_python, ROOT / "bench/sb3_dqn.py"]
    runs: dict[str, list[dict]] = {name: [] for name in contenders}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name, command in contenders.items():
            outcome = run(command, seed, options.time_limit)
            runs[name].append(outcome)
            solved = "solved" if outcome["solved"] else "not solved"
            told = f"{solved} after {outcome['seconds']:.1f} s, {outcome['rows']:,} rows"
            if "final" in outcome:
                told += f", mean return of the frozen network {outcome['final']:.1f}"
            print(f"seed {seed}, {name}: {told}", flush=True)

    seconds = {name: [each["seconds"] for each in outcomes] for name, outcomes in runs.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, outcomes in runs.items():
        values, solved = seconds[name], sum(each["solved"] for each in outcomes)
        print(
            f"{name}: {solved} of {len(outcomes)} solved, median {medians[name]:.1f} s"
            f" ({min(values):.1f} to {max(values):.1f})"
        )
    result = {"machine": describe_machine(), "env": options.env, "runs": runs}
    if SB3 in contenders:
        low, high = interval(seconds[APEX], seconds[SB3])
        ratio = medians[APEX] / medians[SB3]
        print(f"ratio of the medians: {ratio:.2f}, 95 % bootstrap interval {low:.2f} to {high:.2f}")
        result |= {"ratio": ratio, "interval": [low, high]}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.curves:
        save_curves(runs[APEX], options.env, options.curves)


if __name__ == "__main__":
    main()

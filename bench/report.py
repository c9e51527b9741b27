"""From the JSON of all questions to tables, pictures and the ratios that were asked for."""

import json
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from peers import TITLES

Result = dict[str, Any]
Table = tuple[str, str]  # title, Markdown

COLOURS = dict(
    zip(TITLES, ("#d62728", "#1f77b4", "#17a2b8", "#ff7f0e", "#9467bd", "#7f7f7f", "#2ca02c",
                 "#8c564b"), strict=True)
)  # fmt: skip


class Figures:
    """The figures of some questions, looked up by what they are."""

    def __init__(self, results: Iterable[Result]) -> None:
        self.all = [
            {"question": result["question"], **figure}
            for result in results
            for figure in result["figures"]
        ]

    def values(
        self, question: str, peer: str, metric: str, case: dict[str, Any]
    ) -> np.ndarray | None:
        """Return a figure of all repetitions; None if it was not measured."""
        for figure in self.all:
            named = figure["question"], figure["peer"], figure["metric"]
            alike = all(figure["case"].get(name) == value for name, value in case.items())
            if alike and named == (question, peer, metric):
                return np.array(figure["values"])
        return None

    def best(
        self, question: str, metric: str, case: dict[str, Any], but: str = "mpbuffer"
    ) -> tuple[str, np.ndarray] | None:
        """Return the other peer whose median is the largest, and its figures."""
        found = [
            (float(np.median(values)), peer, values)
            for peer in TITLES
            if peer != but and (values := self.values(question, peer, metric, case)) is not None
        ]
        return max(found, key=lambda each: each[0])[1:] if found else None


def ratio(above: np.ndarray | None, below: np.ndarray | None) -> np.ndarray | None:
    """Return the ratios of figures that were measured in the same repetition."""
    if above is None or below is None:
        return None
    both = min(len(above), len(below))
    return above[:both] / below[:both]


def number(value: float) -> str:
    """Return three digits, with k or M."""
    size = abs(value)
    for bound, divisor, unit in ((999.5e3, 1e6, " M"), (9995, 1e3, " k")):
        if size >= bound:
            return f"{_three_digits(value / divisor)}{unit}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    size = abs(value)
    if size >= 99.95 or value == 0:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.0995 else f"{value:.2g}"


def spread(values: np.ndarray | None, scale: float = 1.0, unit: str = "") -> str:
    """Return median and quartiles."""
    if values is None:
        return "-"
    low, middle, high = np.percentile(values * scale, [25, 50, 75])
    return f"{number(middle)}{unit} ({number(low)}-{number(high)})"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _cases(result: Result) -> list[dict[str, Any]]:
    """Return the cases of a question, each once, as they were measured."""
    return list(
        {json.dumps(figure["case"]): figure["case"] for figure in result["figures"]}.values()
    )


def _peers(result: Result) -> list[str]:
    measured = {figure["peer"] for figure in result["figures"]}
    return [peer for peer in TITLES if peer in measured]


def _by_peer(
    result: Result,
    head: str,
    rows: Iterable[tuple[str, str, dict[str, Any]]],
    scale: float = 1.0,
) -> str:
    """Return a table with a column for each peer; `rows` are (name, metric, case)."""
    figures, peers = Figures([result]), _peers(result)
    cells = (
        [name, *(spread(figures.values(result["question"], peer, metric, case), scale)
                 for peer in peers)]
        for name, metric, case in rows
    )  # fmt: skip
    some = [row for row in cells if set(row[1:]) != {"-"}]
    filled = [n for n in range(1, len(peers) + 1) if any(row[n] != "-" for row in some)]
    heads = [head, *(TITLES[peers[n - 1]] for n in filled)]
    return table(heads, ([row[0], *(row[n] for n in filled)] for row in some))


def _calls(result: Result) -> list[Table]:
    rows = []
    for case in _cases(result):
        name, rate = case["call"], "calls/s"
        if "types" in case:
            name += ", gymnasium's types" if case["types"] == "gymnasium" else ", float32 arrays"
        if name.startswith(("single", "batches")):
            rate = "rows/s"
        elif name.startswith("prioritized"):
            rate = "cycles/s"
        rows.append((f"{name}, at {case['capacity']:,}: {rate}", rate, case))
    return [("calls", _by_peer(result, "call", rows))]


def _explorers(result: Result) -> list[Table]:
    cases = [case for case in _cases(result) if "explorers" in case]

    def said(case: dict[str, Any]) -> str:
        speed = {"none": "", "throttled": ", 2,000 rows/s each", "full": ", full speed"}
        own = ", learner has a core to itself" if case["own core"] else ""
        return f"{case['explorers']}{speed[case['speed']]}{own}"

    def of(metric: str, some: list[dict[str, Any]], scale: float = 1.0) -> str:
        return _by_peer(result, "explorers", [(said(case), metric, case) for case in some], scale)

    full = [case for case in cases if case["speed"] != "none"]
    tables = [
        ("learner's cycles/s", of("cycles/s", cases)),
        ("rows/s that came in meanwhile", of("rows/s", full)),
        ("a cycle: median, µs", of("p50 us", cases)),
        ("a cycle: 99th percentile, µs", of("p99 us", cases)),
        ("a cycle: CPU time of the learner's thread, mean, µs", of("cpu us", cases)),
    ]
    shared, own = (learner_cost(Figures([result]), pinned) for pinned in (False, True))
    if shared:
        rows = [[name, spread(values), spread(own.get(name))] for name, values in shared.items()]
        heads = ["", "all on the same cores", "learner has a core to itself"]
        tables.append(("the learner's cost while explorers add at full speed", table(heads, rows)))
    return tables


def learner_cost(figures: Figures, pinned: bool) -> dict[str, np.ndarray]:
    """Return what the learner's cycle costs beside explorers at full speed, less the fold."""
    counts = [figure["case"].get("cost beside", 0) for figure in figures.all]
    many = max(counts, default=0)

    def of(metric: str, case: dict[str, int]) -> np.ndarray | None:
        return figures.values("explorers", "mpbuffer", metric, case | {"own core": pinned})

    beside = {"cost beside": many}
    found = [
        of("cpu us", {"cost beside": 0}),
        of("cpu us", beside),
        of("folded/cycle", beside),
        of("ns/row", {"fold of": many}),
        of("median cpu us", {"cost beside": 0}),
        of("median cpu us", beside),
    ]
    if not many or any(values is None for values in found):
        return {}
    both = min(len(values) for values in found if values is not None)
    alone, busy, rows, cost, *medians = (each[:both] for each in found if each is not None)
    less = busy - rows * cost / 1e3
    return {
        "CPU time of a cycle without explorers, mean, µs": alone,
        f"CPU time of a cycle, {many} explorers, mean, µs": busy,
        "rows folded a cycle": rows,
        "fold of a row, measured alone, ns": cost,
        "CPU time of a cycle less the fold, µs": less,
        "ratio of that to no explorers": less / alone,
        "CPU time of the median cycle without explorers, µs": medians[0],
        f"CPU time of the median cycle, {many} explorers, µs": medians[1],
    }


def _capacity(result: Result) -> list[Table]:
    tables = []
    for explorers, title in ((0, "nobody adds"), (2, "two explorers add 2,000 rows/s each")):
        cases = [case for case in _cases(result) if case["explorers"] == explorers]
        rows = [(f"{case['capacity']:,}", "cpu us", case) for case in cases]
        tables.append((f"a cycle, µs of CPU time, while {title}", _by_peer(result, "rows", rows)))
    cases = [case for case in _cases(result) if case["explorers"] == 0]
    rows = [(f"{case['capacity']:,}", "lines/draw", case) for case in cases]
    tables.append(("lines of the tree that a draw looks at", _by_peer(result, "rows", rows)))
    return tables


def _row_size(result: Result) -> list[Table]:
    cases = [case for case in _cases(result) if "explorers" in case]
    rows = [
        (f"{case['bytes']:,} bytes, {case['capacity']:,} rows, E={case['explorers']}",
         "cycles/s", case)
        for case in cases
    ]  # fmt: skip
    tables = [("learner's cycles/s", _by_peer(result, "rows, explorers", rows))]
    names = {"out": "into the same arrays", "c loop": "the loop in C", "new": "into new arrays"}
    copies = [case for case in _cases(result) if "sample into" in case]
    if copies:
        rows = [(names[case["sample into"]], "rows/s", case) for case in copies]
        tables.append(("sample(512) of Atari rows, rows/s", _by_peer(result, "sample", rows)))
    return tables


def _prefetch(result: Result) -> list[Table]:
    names = {"new": "sample()", "out": "sample(out=)", "prefetch=2": "batches(prefetch=2)"}
    figures = Figures([result])
    rows = []
    for case in _cases(result):
        cells = [names[case["batches"]], case["computing"]]
        for metric, scale in (("waiting", 100.0), ("updating", 100.0), ("loops/s", 1.0)):
            cells.append(spread(figures.values("prefetch", "mpbuffer", metric, case), scale))
        rows.append(cells)
    heads = ["batches by", "computing", "waiting, %", "updating, %", "loops/s"]
    return [("shares of the learner's loop", table(heads, rows))]


def _start_up(result: Result) -> list[Table]:
    tables = []
    for case in _cases(result):
        metrics = list(dict.fromkeys(f["metric"] for f in result["figures"] if f["case"] == case))
        rows = [(metric, metric, case) for metric in metrics]
        shared = "shared by processes" if case["shared"] else "in one process"
        title = f"{case['capacity']:,} rows, {shared}, ms"
        tables.append((title, _by_peer(result, "", rows)))
    return tables


def _memory(result: Result) -> list[Table]:
    figures = Figures([result])
    payloads = list(dict.fromkeys(case["payload"] for case in _cases(result)))
    heads = ["peer", *(f"values of {payload:,} bytes" for payload in payloads)]
    rows = []
    for peer in _peers(result):
        cells = [TITLES[peer]]
        for payload in payloads:
            of_rows = figures.values("memory", peer, "bytes/row", {"payload": payload})
            cells.append("-" if of_rows is None else spread(of_rows - payload))
        rows.append(cells)
    return [("bytes per row beyond its values", table(heads, rows))]


QUESTIONS: dict[str, Callable[[Result], list[Table]]] = {
    "calls": _calls,
    "explorers": _explorers,
    "capacity": _capacity,
    "row_size": _row_size,
    "prefetch": _prefetch,
    "start_up": _start_up,
    "memory": _memory,
}


def tables_of(result: Result) -> list[Table]:
    """Return a question's tables."""
    return QUESTIONS[result["question"]](result)


class Comparison(NamedTuple):
    """A line of the summary: a figure of which more (or less) is better."""

    said: str
    question: str
    metric: str
    case: dict[str, Any]
    less_is_better: bool = False


def _comparisons(results: list[Result]) -> list[Comparison]:
    lines = []
    for result in results:
        question = result["question"]
        for case in _cases(result):
            match question:
                case "calls":
                    said = f"{case['call']}, {case['capacity']:,} rows"
                    if "types" in case:
                        said = f"{case['call']}, {case['types']}"
                    metric = "cycles/s" if said.startswith("prio") else "calls/s"
                    metric = "rows/s" if said.startswith(("single", "batches")) else metric
                    lines.append(Comparison(said, question, metric, case))
                case "explorers" if "explorers" in case and not case["own core"]:
                    speed = {"none": "", "full": " at full speed", "throttled": " at 2,000 rows/s"}
                    said = f"{case['explorers']} explorers{speed[case['speed']]}"
                    lines.append(Comparison(f"cycles/s, {said}", question, "cycles/s", case))
                    if case["speed"] == "full":
                        lines.append(Comparison(f"rows/s, {said}", question, "rows/s", case))
                case "row_size" if "explorers" in case:
                    said = f"cycles/s, rows of {case['bytes']:,} bytes, E={case['explorers']}"
                    lines.append(Comparison(said, question, "cycles/s", case))
                case "capacity" if case["explorers"] == 0:
                    said = f"cycles/s, {case['capacity']:,} rows"
                    lines.append(Comparison(said, question, "cycles/s", case))
                case "memory":
                    case = {"payload": case["payload"]}
                    said = f"memory of a row with {case['payload']:,} bytes of values"
                    line = Comparison(said, question, "bytes/row", case, less_is_better=True)
                    if line not in lines:
                        lines.append(line)
                case "start_up":
                    case = {"capacity": case["capacity"]}
                    said = f"creation, {case['capacity']:,} rows"
                    line = Comparison(said, question, "create", case, less_is_better=True)
                    if line not in lines:
                        lines.append(line)
    return lines


def summary(results: list[Result]) -> str:
    """Return the ratios of mpbuffer to each peer; above 1, mpbuffer is ahead."""
    figures = Figures(results)
    peers = [peer for peer in TITLES if peer != "mpbuffer"]
    rows = []
    for line in _comparisons(results):
        ours = figures.values(line.question, "mpbuffer", line.metric, line.case)
        cells = []
        for peer in peers:
            theirs = figures.values(line.question, peer, line.metric, line.case)
            pair = (theirs, ours) if line.less_is_better else (ours, theirs)
            cells.append(spread(ratio(*pair)))
        if set(cells) != {"-"}:
            rows.append([line.said, *cells])
    return table(["mpbuffer to", *(TITLES[peer] for peer in peers)], rows)


class Demand(NamedTuple):
    """A ratio that mpbuffer is held to."""

    said: str
    at_least: bool
    bound: float
    measured: np.ndarray | None
    remark: str = ""


def demands(results: list[Result]) -> list[Demand]:
    """Return what is required, and what these results say of it."""
    figures = Figures(results)
    lines: list[Demand] = []

    def against(
        said: str, bound: float, question: str, metric: str, case: dict[str, Any], peer: str
    ) -> None:
        remark = ""
        if peer == "best":
            best = figures.best(question, metric, case)
            theirs = None if best is None else best[1]
            remark = "" if best is None else f"best is {TITLES[best[0]]}"
        else:
            theirs = figures.values(question, peer, metric, case)
        ours = figures.values(question, "mpbuffer", metric, case)
        who = "the best peer" if peer == "best" else TITLES[peer]
        lines.append(Demand(f"{said}, to {who}", True, bound, ratio(ours, theirs), remark))

    single = {"call": "single adds", "types": "gymnasium"}
    against("single adds, gymnasium's types", 20, "calls", "rows/s", single, "cpprb")
    against("single adds, gymnasium's types", 3, "calls", "rows/s", single, "sb3")
    arrays = single | {"types": "float32"}
    against("single adds, float32 arrays", 8, "calls", "rows/s", arrays, "sb3")
    against("batches of 100", 6, "calls", "rows/s", {"call": "batches of 100"}, "cpprb")
    uniform = {"call": "uniform sample(256)"}
    against("uniform sample(256)", 5, "calls", "calls/s", uniform, "cpprb")
    both = {"call": "prioritized sample + update(256)", "capacity": 10**6}
    said = "prioritized sample + update(256) at 10^6"
    against(said, 10, "calls", "cycles/s", both, "cpprb")
    against(said, 100, "calls", "cycles/s", both, "cpprb-mp")
    largest = both | {"capacity": 10**7}
    said = "prioritized sample + update(256) at 10^7"
    against(said, 10, "calls", "cycles/s", largest, "cpprb")
    small = figures.values("calls", "mpbuffer", "cycles/s", both | {"capacity": 10**5})
    large = figures.values("calls", "mpbuffer", "cycles/s", largest)
    lines.append(Demand(f"{said}, its time to that at 10^5", False, 2.8, ratio(small, large)))

    for count, most in ((4, 8), (16, 7)):
        case = {"explorers": count, "speed": "throttled", "own core": False}
        said = f"cycles/s beside {count} throttled explorers"
        against(said, 50, "explorers", "cycles/s", case, "cpprb-mp")
        against(said, most, "explorers", "cycles/s", case, "best")
    for pinned, where in ((False, "all on the same cores"), (True, "on a core of its own")):
        cost = learner_cost(figures, pinned)
        said = "the learner's CPU time a cycle beside 16 explorers at full speed, less the fold of "
        said += f"the rows that came in, to that without explorers; {where}"
        remark = ""
        measured = None
        if any("16 explorers" in name for name in cost):
            values = [float(np.median(of)) for of in cost.values()]
            remark = f"{values[1]:.1f} - {values[2]:,.0f} rows x {values[3]:.2f} ns = "
            remark += f"{values[4]:.1f} µs; without explorers {values[0]:.1f} µs; the median cycle "
            remark += f"{values[7]:.1f} and {values[6]:.1f} µs"
            measured = cost["ratio of that to no explorers"]
        lines.append(Demand(said, False, 1.3, measured, remark))

    case = {"explorers": 4, "speed": "full", "own core": False}
    said = "rows/s that four explorers add at full speed while the learner cycles"
    against(said, 10, "explorers", "rows/s", case, "best")
    case = {"explorers": 4, "speed": "throttled", "own core": True}
    said = "99th percentile of a cycle to its median beside 4 throttled explorers, "
    said += "the learner on a core of its own"
    tail = figures.values("explorers", "mpbuffer", "p99/p50", case)
    lines.append(Demand(said, False, 2.5, tail))

    of = "row_size", "mpbuffer", "rows/s"
    recycled = figures.values(*of, {"sample into": "out"})
    loop = figures.values(*of, {"sample into": "c loop"})
    said = "sample(512) of Atari rows into recycled arrays, to a loop in C"
    lines.append(Demand(said, True, 0.85, ratio(recycled, loop)))
    case = {"row": "Atari", "explorers": 4}
    said = "Atari rows, cycles/s beside 4 throttled explorers"
    against(said, 2, "row_size", "cycles/s", case, "cpprb-mp")
    for how, at_least, bound in (("new", True, 0.25), ("prefetch=2", False, 0.02)):
        case = {"batches": how, "computing": "core"}
        waiting = figures.values("prefetch", "mpbuffer", "waiting", case)
        said = "share of its loop that a learner waits which computes 5 ms per Atari batch, "
        said += "sample()" if how == "new" else "batches(prefetch=2)"
        lines.append(Demand(said, at_least, bound, waiting))
    return lines


def demands_table(results: list[Result]) -> str:
    """Return what is required beside what was measured."""
    rows = []
    for line in demands(results):
        met = "not measured"
        if line.measured is not None:
            median = float(np.median(line.measured))
            met = "yes" if (median >= line.bound) == line.at_least or median == line.bound else "no"
        required = f"{'≥' if line.at_least else '≤'} {line.bound:g}"
        measured = "-" if line.measured is None else spread(line.measured)
        rows.append([line.said, required, measured, met, line.remark])
    return table(["ratio", "required", "measured", "met", ""], rows)


def described(results: list[Result]) -> str:
    """Return machine, versions, what was noted, and who was left out."""
    machine = results[0]["machine"]
    loads = ", ".join(result["machine"]["load average"].split()[0] for result in results)
    said = dict(machine) | {"load average": f"{loads} at the end of each question"}
    lines = [", ".join(f"{name} {value}" for name, value in said.items()) + ".", ""]
    versions: dict[str, dict[str, str]] = {}
    for result in results:
        versions |= result["versions"]
    for peer in (peer for peer in TITLES if peer in versions):
        of_peer = ", ".join(f"{name} {value}" for name, value in versions[peer].items())
        lines.append(f"- {TITLES[peer]}: {of_peer}")
    counts = [len(f["values"]) for result in results for f in result["figures"]]
    lines += ["", f"Repetitions: {min(counts)} to {max(counts)} of each figure."]
    for result in results:
        for name, note in result["notes"].items():
            said_note = note
            if isinstance(note, dict):
                said_note = "; ".join(f"{key} {value}" for key, value in note.items())
            lines.append(f"- {result['question']}: {name}: {said_note}")
    left_out = [
        f"- {result['question']}: {TITLES[skip['peer']]}"
        + (f", {skip['what']}" if skip["what"] else "")
        + f": {skip['why']}"
        for result in results
        for skip in result["skipped"]
    ]
    if left_out:
        lines += ["", "Left out:", "", *left_out]
    return "\n".join(lines)


def draw(results: list[Result], folder: pathlib.Path) -> dict[str, tuple[str, pathlib.Path]]:
    """Draw pictures of some questions; return what each shows, and its file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = Figures(results)
    by_question = {result["question"]: result for result in results}
    drawn = {}

    def curves(
        axes: Any, question: str, metric: str, points: list[tuple[Any, dict]], inverse: bool = False
    ) -> None:
        for peer in TITLES:
            found = [
                (x, 1e6 / values if inverse else values)
                for x, case in points
                if (values := figures.values(question, peer, metric, case)) is not None
            ]
            if not found:
                continue
            low, middle, high = zip(
                *(np.percentile(values, [25, 50, 75]) for _, values in found), strict=True
            )
            places = [x for x, _ in found]
            width = 2.2 if peer == "mpbuffer" else 1.3
            axes.plot(places, middle, "o-", ms=4, lw=width, color=COLOURS[peer], label=TITLES[peer])
            axes.fill_between(places, low, high, color=COLOURS[peer], alpha=0.15, lw=0)
        axes.set_yscale("log")
        axes.grid(True, which="major", alpha=0.3)

    def save(picture: Any, name: str, said: str) -> None:
        for axes in picture.axes:
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
                break
        picture.tight_layout()
        picture.savefig(folder / f"{name}.png", dpi=110)
        pyplot.close(picture)
        drawn[name] = said, folder / f"{name}.png"

    if "explorers" in by_question:
        picture, panels = pyplot.subplots(1, 3, figsize=(13, 4.2))
        cases = [case for case in _cases(by_question["explorers"]) if "explorers" in case]
        cases = [case for case in cases if not case["own core"]]
        for axes, speed, metric, title in zip(
            panels,
            ("throttled", "full", "full"),
            ("cycles/s", "cycles/s", "rows/s"),
            ("learner's cycles/s, 2,000 rows/s each", "learner's cycles/s, full speed",
             "rows/s that come in, full speed"),
            strict=True,
        ):  # fmt: skip
            alike = [case for case in cases if case["speed"] in (speed, "none")]
            if metric == "rows/s":
                alike = [case for case in alike if case["explorers"]]
            curves(axes, "explorers", metric, list(enumerate(alike)))
            axes.set_xticks(range(len(alike)), [str(case["explorers"]) for case in alike])
            axes.set_xlabel("explorers")
            axes.set_title(title, fontsize=10)
        save(picture, "explorers", "cycles and rows against the number of explorers")

    if "capacity" in by_question:
        picture, axes = pyplot.subplots(figsize=(6, 4.2))
        cases = [case for case in _cases(by_question["capacity"]) if case["explorers"] == 0]
        points = [(case["capacity"], case) for case in cases]
        curves(axes, "capacity", "cycles/s", points, inverse=True)
        axes.set_xscale("log")
        axes.set_xlabel("rows")
        axes.set_title("a cycle of 512 rows, µs", fontsize=10)
        save(picture, "capacity", "a cycle against the capacity")

    if "row_size" in by_question:
        picture, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True)
        cases = [case for case in _cases(by_question["row_size"]) if "explorers" in case]
        for axes, explorers in zip(panels, (0, 4), strict=True):
            alike = [case for case in cases if case["explorers"] == explorers]
            curves(axes, "row_size", "cycles/s", [(case["bytes"], case) for case in alike])
            axes.set_xscale("log")
            axes.set_xlabel("bytes of a row")
            axes.set_title(f"learner's cycles/s, E={explorers}", fontsize=10)
        save(picture, "row_size", "cycles against the size of a row")

    if "calls" in by_question:
        cases = _cases(by_question["calls"])
        picture, axes = pyplot.subplots(figsize=(9, 4.6))
        lines = [line for line in _comparisons([by_question["calls"]])]
        bar = 0.8 / max(1, len(TITLES) - 1)
        for place, peer in enumerate(peer for peer in TITLES if peer != "mpbuffer"):
            found = [
                (n, ratio(ours, theirs))
                for n, line in enumerate(lines)
                if (ours := figures.values("calls", "mpbuffer", line.metric, line.case)) is not None
                and (theirs := figures.values("calls", peer, line.metric, line.case)) is not None
            ]
            if found:
                at = [n - 0.4 + bar * (place + 0.5) for n, _ in found]
                medians = [float(np.median(values)) for _, values in found]
                axes.barh(at, medians, bar, color=COLOURS[peer], label=TITLES[peer])
        axes.set_yticks(range(len(lines)), [line.said for line in lines], fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.axvline(1, color="black", lw=0.8)
        axes.grid(True, axis="x", alpha=0.3)
        axes.set_title("one process: how many times as fast mpbuffer is", fontsize=10)
        save(picture, "calls", "how many times as fast each call is")
    return drawn


def rewrite(page: pathlib.Path, parts: dict[str, str]) -> None:
    """Replace what stands between the markers of these parts.

    Raises
    ------
    ValueError
        If the page lacks a part's markers.
    """
    text = page.read_text()
    for name, content in parts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        if not re.search(pattern, text, re.DOTALL):
            raise ValueError(f"cannot rewrite {page}: no part {name!r} between markers")
        whole = f"{begin}\n\n{content}\n\n{end}"
        text = re.sub(pattern, lambda _, whole=whole: whole, text, flags=re.DOTALL)
    page.write_text(text)

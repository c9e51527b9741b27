"""All questions: JSON, tables and pictures, and the tables of README.md.

    python bench/all.py --out bench/results

Takes about the minutes that --minutes says, and some more to fill the buffers. Where peers live in
environments of their own, say --python PEER=PATH for each; README.md tells how they are made.
--short makes a smoke run, leaves README.md alone, and says nothing about speed.
"""

import json
import os
import pathlib
import time
from types import ModuleType

import calls
import capacity
import explorers
import memory
import prefetch
import row_size
import start_up
from interleaved import WorkerProcess, answer, end_all, options_of
from report import demands_table, described, draw, rewrite, summary, tables_of

QUESTIONS: tuple[ModuleType, ...] = (
    calls,
    explorers,
    capacity,
    row_size,
    prefetch,
    start_up,
    memory,
)
NEED_FRESH_PROCESSES = start_up, memory
PAGE = pathlib.Path(__file__).with_name("README.md")


def main() -> None:
    """Measure everything and write it down."""
    whole = sum(question.MINUTES for question in QUESTIONS)
    description = __doc__.partition("\n")[0]
    options = options_of(description, minutes=whole, out=True)
    share = options.minutes / whole
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    pool: dict[str, WorkerProcess] = {}
    try:
        for question in QUESTIONS:
            name = question.__name__
            options.minutes = question.MINUTES * share
            start = time.monotonic()
            shared = pool if options.short or question not in NEED_FRESH_PROCESSES else None
            results.append(answer(name, options, question.PEERS, question.measure, shared))
            (options.out / f"{name}.json").write_text(json.dumps(results[-1], indent=1) + "\n")
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    finally:
        end_all(pool)
    parts = {
        "machine": described(results),
        "ratios": summary(results),
        "requirements": demands_table(results),
    }
    pictures = draw(results, options.out)
    for result in results:
        shown = [f"{title[0].upper()}{title[1:]}:\n\n{text}" for title, text in tables_of(result)]
        name = result["question"]
        if name in pictures:
            said, file = pictures[name]
            shown.insert(0, f"![{said}]({os.path.relpath(file, PAGE.parent)})")
            print(file)
        parts[name] = "\n\n".join(shown)
    page = "\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items())
    (options.out / "tables.md").write_text(page + "\n")
    if options.short:
        print("a smoke run: README.md is as it was")
    else:
        rewrite(PAGE, parts)
    print(f"\n{parts['requirements']}")


if __name__ == "__main__":
    main()

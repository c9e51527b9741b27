"""The tables of segment_format.md, from the structs in cpp/core/format.

    python docs/list_format.py            # writes them between the page's marked lines
    python docs/list_format.py --check    # compares only

Names and comments come from the headers. Offsets, sizes and constants come from a C++ program that
includes the headers and is compiled here.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "cpp" / "core"
PAGE = ROOT / "docs" / "segment_format.md"

# Structs of cpp/core/format that are arguments and results of functions, not parts of a segment.
NOT_SHARED = {"Field", "PlaneCut", "RecordLayout", "RingShape", "SeqBounds", "SequenceShape"}
NOT_SHARED |= {"SourceShape", "StoredField", "WeightsShape"}
CONSTANT_SPACES = {"lock_byte": "os/file_locks.hpp"}
BIT_SPACES = {"slot_word": "format/slot_word.hpp"}


class Member(NamedTuple):
    """One field of a struct."""

    type: str
    name: str
    count: str  # of an array, else ""
    comment: str


class Struct(NamedTuple):
    """One struct that lies in a segment."""

    name: str
    header: str
    comment: str
    members: list[Member]


def without_functions(body: str) -> str:
    """Drop member functions: the lines from one that opens a brace to the one that closes it."""
    kept, depth = [], 0
    for line in body.splitlines(keepends=True):
        code = line.partition("//")[0]
        if depth == 0 and "{" not in code:
            kept.append(line)
        depth += code.count("{") - code.count("}")
    return "".join(kept)


def members_of(body: str) -> list[Member]:
    """Read the fields of a struct, each with its comment, above it or behind it."""
    members, above = [], ""
    text = re.sub(r"(<[^;{}]*>)\s*\n\s*(\w+;)", r"\1 \2", without_functions(body))
    for line in text.splitlines():
        if found := re.match(r"\s*//\s*(.*)", line):
            above = f"{above} {found[1]}".strip()
        elif found := re.match(
            r"\s*(?:alignas\(\d+\)\s+)?([\w:<> ]+?)\s+(\w+)(?:\[(\w+)\])?;\s*(?://\s*(.*))?$", line
        ):
            comment = " ".join(filter(None, (above, found[4])))
            members.append(Member(found[1], found[2], found[3] or "", comment))
            above = ""
        elif line.strip():
            raise SystemExit(f"cannot read the field {line.strip()!r}: expected `type name;`")
    return members


def structs() -> Iterator[Struct]:
    """Find the structs of cpp/core/format that lie in a segment."""
    for header in sorted((CORE / "format").glob("*.hpp")):
        text = header.read_text()
        pattern = r"((?:^//[^\n]*\n)*)^struct (?:alignas\(\d+\) )?(\w+) \{\n(.*?)^\};"
        for comment, name, body in re.findall(pattern, text, re.DOTALL | re.MULTILINE):
            if name not in NOT_SHARED:
                said = " ".join(line.strip("/ ") for line in comment.splitlines())
                yield Struct(name, f"format/{header.name}", said, members_of(body))


def constants_of(space: str, header: str) -> list[str]:
    """Name the integer constants of a namespace, in its order."""
    text = (CORE / header).read_text()
    inside = re.search(rf"namespace (?:mpbuffer::)?{space} \{{(.*?)\n\}}", text, re.DOTALL)
    assert inside is not None, f"{header} has no namespace {space}"
    return re.findall(r"^constexpr [\w:]+ (\w+) =", inside[1], re.MULTILINE)


def program(found: list[Struct]) -> str:
    """Write the C++ program that prints one `key value` a line."""
    headers = sorted(
        {each.header for each in found} | {*CONSTANT_SPACES.values(), *BIT_SPACES.values()}
    )
    lines = ["#include <cstdio>", "#include <cstddef>", "#include <string>"]
    lines += [f'#include "{header}"' for header in headers]
    lines += [
        "using namespace mpbuffer;",
        "static void say(const char* key, unsigned long long value) {",
        '    std::printf("%s %llu\\n", key, value);',
        "}",
        "int main() {",
    ]
    for struct in found:
        lines.append(f'say("{struct.name}", sizeof({struct.name}));')
        for member in struct.members:
            key = f"{struct.name}.{member.name}"
            lines.append(f'say("{key}", offsetof({struct.name}, {member.name}));')
            lines.append(f'say("{key}:bytes", sizeof({struct.name}::{member.name}));')
    for space, header in {**CONSTANT_SPACES, **BIT_SPACES}.items():
        for name in constants_of(space, header):
            lines.append(f'say("{space}::{name}", {space}::{name});')
    for kind, planned in EXAMPLES.items():
        lines.append(f"{{ const SegmentHeader header = {planned};")
        for path in offset_paths(found):
            lines.append(f'say("{kind}@{path}", header.{path});')
        lines.append(f'say("{kind}@total_bytes", header.total_bytes); }}')
    return "\n".join([*lines, "}"])


EXAMPLES = {
    "buffer": "plan_segment(RingShape{1000, 24, true, 0.6, 1e-4}, std::string(100, ' '), 0)",
    "weights": "plan_segment(WeightsShape{10000, 4}, std::string(100, ' '))",
}


def offset_paths(found: list[Struct]) -> list[str]:
    """Name the fields of the header that tell where a part of the segment is."""
    by_name = {each.name: each for each in found}
    paths = []
    for member in by_name["SegmentHeader"].members:
        if member.name.endswith("_offset"):
            paths.append(member.name)
        elif member.type in by_name:
            prefix = f"{member.name}[0]" if member.count else member.name
            inner = by_name[member.type].members
            paths += [f"{prefix}.{each.name}" for each in inner if each.name.endswith("_offset")]
    return paths


def measure(found: list[Struct]) -> dict[str, int]:
    """Compile and run the program."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or "clang++"
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "format.cpp"), Path(folder, "format")
        source.write_text(program(found))
        sources = [str(each) for room in ("base", "format") for each in (CORE / room).glob("*.cpp")]
        command = [compiler, "-std=c++20", "-O0", "-w", "-Wno-invalid-offsetof", f"-I{CORE}"]
        subprocess.run([*command, str(source), *sources, "-pthread", "-o", str(binary)], check=True)
        said = subprocess.run([str(binary)], check=True, capture_output=True, text=True).stdout
    return {key: int(value) for key, value in (line.rsplit(" ", 1) for line in said.splitlines())}


def type_in_words(member: Member) -> str:
    """Shorten a C++ type: ``std::atomic<std::uint64_t>`` is `u64, atomic`."""
    inner = re.fullmatch(r"std::atomic<(.+)>", member.type)
    name = (inner[1] if inner else member.type).removeprefix("std::")
    short = {"double": "f64", "float": "f32"}.get(name, re.sub(r"uint(\d+)_t", r"u\1", name))
    array = f"[{member.count}]" if member.count else ""
    return f"{short}{array}{', atomic' if inner else ''}"


def table(headings: list[str], rows: list[list[str]]) -> list[str]:
    """Make a Markdown table; an empty last column goes."""
    if not any(row[-1] for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return lines + [
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows
    ]


def part_in_words(path: str) -> str:
    """Name a part of the segment by the header's field: `ring[0].leaf_offset`: leaf."""
    return path.rpartition(".")[2].removesuffix("_offset").replace("_", " ")


def generated() -> dict[str, str]:
    """Return the page's generated blocks by the names that its marked lines give them."""
    found = list(structs())
    numbers = measure(found)
    blocks = {}
    for kind in EXAMPLES:
        places = {path: numbers[f"{kind}@{path}"] for path in offset_paths(found)}
        used = sorted((at, path) for path, at in places.items() if at > 0)
        rows = [
            ["0", "header", ""],
            [f"{numbers_of_description(found, numbers):,}", "description", ""],
        ]
        rows += [[f"{at:,}", part_in_words(path), f"`{path}`"] for at, path in used]
        rows.append([f"{numbers[f'{kind}@total_bytes']:,}", "end", "`total_bytes`"])
        blocks[kind] = "\n".join(table(["at", "part", "field of the header"], rows))
    sections = []
    for struct in found:
        rows = [
            [
                f"{numbers[f'{struct.name}.{each.name}']}",
                f"{numbers[f'{struct.name}.{each.name}:bytes']}",
                f"`{each.name}`",
                type_in_words(each),
                each.comment,
            ]
            for each in struct.members
        ]
        size = numbers[struct.name]
        title = f"### {struct.name}: {size:,} bytes"
        where = f"`cpp/core/{struct.header}`" + (f". {struct.comment}" if struct.comment else "")
        sections.append("\n".join([title, "", where, "", *table(HEADINGS, rows)]))
    blocks["structs"] = "\n\n".join(sections)
    for space, header in {**CONSTANT_SPACES, **BIT_SPACES}.items():
        rows = [
            [f"`{name}`", f"{numbers[f'{space}::{name}']}"] for name in constants_of(space, header)
        ]
        blocks[space] = "\n".join(
            ["| constant | value |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
        )
    return blocks


HEADINGS = ["at", "bytes", "field", "type", "comment"]


def numbers_of_description(found: list[Struct], numbers: dict[str, int]) -> int:
    """Where the description begins: behind the header's page."""
    text = (CORE / "format" / "header.hpp").read_text()
    declared = re.search(r"header_bytes = (\d+);", text)
    assert declared is not None and int(declared[1]) >= numbers["SegmentHeader"]
    return int(declared[1])


def page_with(blocks: dict[str, str], page: str) -> str:
    """Put the blocks between their marked lines."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: by list_format.py -->", f"<!-- end of {name} -->"
        if begin not in page:
            raise SystemExit(f"{PAGE}: no line {begin}")
        head, rest = page.split(begin)
        page = f"{head}{begin}\n{block}\n{end}{rest.split(end)[1]}"
    return page


def main() -> None:
    """Write or compare the tables."""
    options = argparse.ArgumentParser(description="The tables of segment_format.md.")
    options.add_argument("--check", action="store_true", help="compare only")
    check = options.parse_args().check
    page = PAGE.read_text()
    wanted = page_with(generated(), page)
    if check and wanted != page:
        sys.exit(f"{PAGE} is out of date: run python docs/list_format.py")
    if not check:
        PAGE.write_text(wanted)


if __name__ == "__main__":
    main()

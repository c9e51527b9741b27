"""What README.md and docs/ say is so: their code runs, and their commands are those tested."""

import ast
import re
from pathlib import Path

import pytest
from watched_processes import run_python

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MAIN_JOB = "pip install . -r examples/requirements.txt && python examples/apex.py"
TESTS = 'pip install -e ".[test]" && pytest'

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
python_blocks = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}-{index}")
    for page in PAGES
    for index, block in enumerate(
        re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    )
]


def test_code_comes_before_line_25():
    assert "```python" in README.splitlines()[:24]


@pytest.mark.parametrize("block", python_blocks)
def test_code_runs(block, tmp_path):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                pytest.importorskip(alias.name)
    program = tmp_path / "program.py"
    program.write_text(block)
    ended = run_python(str(program), seconds=60)
    assert ended.returncode == 0, ended.stderr.decode()
    assert ended.stdout.decode() + ended.stderr.decode() == ""


def test_set_up_commands_are_those_that_ci_runs():
    shell_blocks = re.findall(r"^```sh\n(.*?)\n```$", README, re.DOTALL | re.MULTILINE)
    assert shell_blocks == [MAIN_JOB, TESTS]
    ci = (ROOT / ".ci" / "run").read_text()
    for command in (MAIN_JOB, TESTS):
        for part in command.split(" && "):
            assert re.search(rf"^\s*(?:\w+ )*{re.escape(part)}(?![^\s;|&])", ci, re.MULTILINE), part


def test_files_that_documents_point_to_are_there():
    documents = [*ROOT.glob("*.md"), *(ROOT / "bench").glob("*.md"), *(ROOT / "cpp").rglob("*.md")]
    for document in {*documents, *PAGES}:
        for target in re.findall(r"\]\((?!https?:)(?:path:)?([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"

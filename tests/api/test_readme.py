"""What README.md says is so: its code runs, and its commands are those that are tested."""

import re
from pathlib import Path

import pytest
from watched_processes import run_python

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MAIN_JOB = "pip install . -r examples/requirements.txt && python examples/apex.py"
TESTS = 'pip install -e ".[test]" && pytest'

python_blocks = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_code_comes_before_line_25():
    assert "```python" in README.splitlines()[:24]


@pytest.mark.parametrize("block", python_blocks, ids=lambda block: f"{len(block)} characters")
def test_code_runs(block, tmp_path):
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
    for document in [*ROOT.glob("*.md"), *(ROOT / "bench").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"

"""Programs of several threads, among signals, forks, the collector and their own end."""

import subprocess

import edge_recipes
import pytest
from watched_processes import SUPPORT, python_started

CAMPAIGN = SUPPORT / "edge_campaign.py"


def run_campaign(*arguments, seconds):
    """Fails with what the campaign found; its programs end with it."""
    with python_started(str(CAMPAIGN), *arguments, stderr=subprocess.STDOUT) as campaign:
        said, _ = campaign.communicate(timeout=seconds)
    if campaign.returncode != 0:
        pytest.fail(said.decode(), pytrace=False)


def test_every_public_method_has_a_recipe():
    assert edge_recipes.without_recipe() == []
    assert edge_recipes.without_method() == []


@pytest.mark.parametrize("kind", ["threads", "handlers", "forks", "kept", "exits"])
def test_programs_neither_freeze_nor_abort(kind):
    run_campaign("--short", "--only", kind, seconds=110)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_calls():
    run_campaign(seconds=3500)

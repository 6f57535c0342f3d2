"""The files that take longest start first, so that processes that share the files end at about the same time."""

from pathlib import Path

LONGEST_FIRST = (
    "notebooks/test_smoke_report.py",
    "test_on_pretend_cuda.py",
    "runs/test_unit_versions.py",
    "worlds/test_hub_notebook.py",
    "runs/test_cli.py",
    "probe/test_selection.py",
    "runs/test_grid.py",
    "probe/test_search.py",
    "probe/test_miner.py",
    "studies/test_probe_studies.py",
    "worlds/test_architectures.py",
    "studies/test_seed_study.py",
    "probe/test_neighbours.py",
)
PLACES = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FIRST)}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: PLACES.get(item.path, len(PLACES)))

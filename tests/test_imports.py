"""The rooms import what they may and nothing more."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rkcnn_lib"
TENSOR_ROOMS = {"torch", "numpy", "scipy", "sklearn", "safetensors", "tqdm"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("room", ["probe", "sae", "measure"])
def test_tensor_rooms_import_tensors_only(room):
    allowed = {room, "tensors", "files"}
    for path in (PACKAGE / room).glob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            if top == "rkcnn_lib":
                assert name.split(".")[1] in allowed, f"{path.name} imports {name}"
            else:
                assert top in TENSOR_ROOMS | set(sys.stdlib_module_names), f"{path.name} imports {name}"


def test_worlds_do_not_know_the_report():
    names = {name for path in (PACKAGE / "worlds").glob("*.py") for name in imported(path)}
    assert not any(name.startswith(("rkcnn_lib.report", "plotly", "papermill")) for name in names)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_the_package_imports_no_heavy_library():
    done = run("import rkcnn_lib, sys; print([m for m in ('torch', 'transformers', 'plotly') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_tensor_rooms_import_where_transformer_lens_is_not_installed():
    block = "import sys; sys.modules.update(dict.fromkeys(['transformer_lens', 'transformers', 'datasets', 'plotly']))"
    done = run(f"{block}; import rkcnn_lib.probe, rkcnn_lib.sae, rkcnn_lib.measure; print('fine')")
    assert done.stdout.strip() == "fine", done.stderr


def test_the_public_names_are_where_they_were_promised():
    code = (
        "from rkcnn_lib.probe import RkCNNMiner, RandomKCNNClassifier, mine\n"
        "from rkcnn_lib.sae import SAE, SAEConfig, TrainConfig, train_sae, train_many, init_from_directions\n"
        "from rkcnn_lib.sae import save_saelens, load_saelens\n"
        "from rkcnn_lib.measure import mmcs, matched_cosine, recovery_rate, pw_mcc, quality, chance\n"
        "from rkcnn_lib.worlds import ToyModel, ParallelToyModel, SyntheticSparseDataGenerator\n"
        "from rkcnn_lib.worlds import SyntheticClusteredDataGenerator, load_model, ActivationStore, open_or_capture\n"
        "import sys; print('transformers' in sys.modules)"
    )
    done = run(code)
    assert done.stdout.strip() == "False", done.stderr


def test_nothing_unpickles_or_trusts_remote_code():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "torch.load(" not in text and "import pickle" not in text, path
        assert "trust_remote_code=True" not in text, path

"""A sweep on a Ray cluster gives the table of one machine, whatever node is lost; a bad cluster is refused at once."""

import importlib.util
import socket
import threading
import time

import pandas as pd
import pytest
import yaml

from rkcnn_lib import cli
from rkcnn_lib.runs.grid import ClusterUnusable, _problem, _version, connect
from rkcnn_lib.runs.params import ROOT

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed: pip install -e '.[cluster]'")
# 10 settings x 2 seeds x 2 arms: 40 SAEs
SMALL = {
    "profile": "smoke", "model": "planted", "arms": ["random", "rkcnn"], "n_tokens": 6000, "expansion": 2.0,
    "steps": 150, "batch_size": 256, "lr": 1e-3, "n_subsets": 60, "n_directions": 20, "mining_rows": 1000,
    "heldout_rows": 500,
}  # fmt: skip
AXES = {"layers": [0], "seeds": [0, 1], "k": [2, 3, 4, 5, 6], "fraction_mined": [0.5, 1.0]}


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_extra_is_named(tmp_path):
    with pytest.raises(ClusterUnusable, match=r"\.\[cluster\]"):
        connect("auto", "cpu", [tmp_path])


def test_a_node_that_sees_other_folders_or_runs_other_code_says_so(tmp_path):
    (tmp_path / "token").touch()
    assert _problem([tmp_path / "token"], _version()) == ""
    assert "all nodes mount" in _problem([tmp_path / "token", tmp_path / "other"], _version())
    assert "same one on every node" in _problem([tmp_path / "token"], "0" * 16)


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto", "nonsense"])
def test_an_address_where_no_cluster_is_ends_in_words_before_compute(address, tmp_path, capsys):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"parameters": SMALL, "axes": AXES}), encoding="utf-8")
    began = time.monotonic()
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "out"), "--cluster", address]) == 1
    assert "ClusterUnusable" in capsys.readouterr().err and time.monotonic() - began < 60
    assert not (tmp_path / "out").exists()


def node(cpus=2):
    """Return a node's settings; with ports given Ray does not wait for its helpers, which may start late."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    return {"num_cpus": cpus} | dict(zip(names, ports, strict=True))


@pytest.fixture
def two_nodes(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from ray.cluster_utils import Cluster

    for trial in range(4):
        cluster = Cluster()
        try:
            cluster.add_node(**node())
            second = cluster.add_node(**node())
            break
        except Exception:  # Ray gives its helpers 15 seconds to start, which a busy machine may not
            cluster.shutdown()
            if trial == 3:
                raise
    yield cluster, second
    import ray

    ray.shutdown()
    cluster.shutdown()


@needs_ray
def test_a_sweep_that_loses_a_node_gives_the_table_of_one_machine_to_the_bit(two_nodes, tmp_path, monkeypatch, capsys):
    cluster, second = two_nodes
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"parameters": SMALL | {"n_jobs": 2}, "axes": AXES}), encoding="utf-8")
    lost = []

    def lose_a_node():
        units = tmp_path / "there-outputs" / "units" / "saes"
        while len(list(units.glob("*/unit.json"))) < 15:
            time.sleep(0.1)
        cluster.remove_node(second, allow_graceful=False)
        lost.append(len(list(units.glob("*/unit.json"))))

    def table(place, *more):
        monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path / f"{place}-outputs"))
        assert cli.main(["sweep", str(path), "--out", str(tmp_path / place), "--yes", *more]) == 0
        return pd.read_parquet(tmp_path / place / "metrics.parquet")

    thread = threading.Thread(target=lose_a_node, daemon=True)
    thread.start()
    there = table("there", "--cluster", cluster.address)
    thread.join(30)
    assert lost and lost[0] < 40, "the node was lost in the middle"
    assert "a worker was lost" in capsys.readouterr().out
    here = table("here")
    pd.testing.assert_frame_equal(there, here, check_exact=True)
    cells = there.drop_duplicates(["setting", "arm", "seed"])
    assert len(cells) == 40 and not there.duplicated(["setting", "arm", "seed", "metric"]).any()

"""SAEs of others: read from a local folder of the hub's layout, refused before compute where they do not fit."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from rkcnn_lib.runs import published
from rkcnn_lib.runs.params import ParameterError
from rkcnn_lib.runs.published import open_published
from rkcnn_lib.sae import SAE, SAEConfig, save_saelens
from rkcnn_lib.studies.comparison import centred, judge_published
from rkcnn_lib.worlds import MemoryStore

D = 6


@pytest.fixture
def perfect(tmp_path, monkeypatch):
    """An SAE in the layout of before SAELens 6 that gives every row back: latents +e_i and -e_i."""
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path / "outputs"))
    sae = SAE(SAEConfig(D, 2 * D, architecture="relu", l1=0.0))
    both = torch.cat([torch.eye(D), -torch.eye(D)])
    with torch.no_grad():
        sae.W_dec.copy_(both)
        sae.W_enc.copy_(both.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    folder = save_saelens(sae, tmp_path / "blocks.8.hook_resid_pre_12")
    (folder / "cfg.json").write_text(
        json.dumps({"d_in": D, "d_sae": 2 * D, "hook_point": "blocks.8.hook_resid_pre", "activation_fn_str": "relu"}),
        encoding="utf-8",
    )
    return folder


def asked(*published):
    return SimpleNamespace(
        published=list(published), arms=["random", "rkcnn"], model="toy", layer=8, heldout_rows=500,
        splice_contexts=4,
    )  # fmt: skip


def judged(spec, X):
    p = asked(spec)
    table = judge_published(open_published(p, D), MemoryStore(X, name="rows"), SimpleNamespace(p=p, device="cpu"))
    return table.set_index("metric")["value"]


def test_a_perfect_sae_of_others_scores_as_one(perfect):
    X = torch.randn(20_000, D, generator=torch.Generator().manual_seed(0))
    found = judged(str(perfect), X)
    assert found["explained_variance"] == pytest.approx(1.0, abs=1e-6)
    assert found["l0"] == pytest.approx(D) and found["dead"] == 0


def test_a_centred_one_is_read_without_the_mean_over_dimensions(perfect):
    X = torch.randn(20_000, D, generator=torch.Generator().manual_seed(0)) + 5.0
    assert judged(f"{perfect}#centred", X)["explained_variance"] == pytest.approx(1.0, abs=1e-6)
    _, sae = open_published(asked(str(perfect)), D).popitem()[1]
    assert not centred(sae).encode(torch.full((3, D), 7.0)).any()  # a constant row is nothing but its mean


def copied(folder, *places):
    return [str(shutil.copytree(folder, folder.parent / place)) for place in places]


def test_two_of_one_name_are_both_judged_and_told_apart_by_their_paths(perfect):
    one, other, deep, arm = copied(perfect, "a/x/hook", "b/x/hook", "c/y/hook", "random")
    p = asked(one, other, deep, arm, f"{deep}#centred", str(perfect), f"{one}/", str(perfect.parent / "b/../a/x/hook"))
    opened = open_published(p, D)
    names = ["a/x/hook", "b/x/hook", "y/hook", f"{perfect.parent.name}/random", "hook#centred", perfect.name]
    assert list(opened) == names  # the same folder twice is one
    for name, spec in zip(names[:3], (one, other, deep), strict=True):
        assert opened[name][0].samefile(spec)
    X = torch.randn(20_000, D, generator=torch.Generator().manual_seed(0))
    table = judge_published(opened, MemoryStore(X, name="rows"), SimpleNamespace(p=p, device="cpu"))
    assert set(table["arm"]) == set(names) and not table.duplicated(["arm", "metric"]).any()


def test_two_repositories_of_the_hub_are_told_apart(perfect, monkeypatch):
    monkeypatch.setattr(published, "folder_of", lambda spec: perfect)
    specs = ["ann/saes:l1/hook", "bob/saes:l1/hook", "bob/saes:l2/hook", "bob/saes:l2/hook#centred"]
    assert list(open_published(asked(*specs), D)) == ["ann/saes/l1/hook", "bob/saes/l1/hook", "l2/hook", "hook#centred"]


def test_a_folder_with_a_colon_in_its_name_is_found(perfect):
    (odd,) = copied(perfect, "layer:8")
    assert list(open_published(asked(odd), D)) == ["layer:8"]


def test_another_configuration_with_the_same_weights_is_judged_again(perfect):
    X = torch.randn(20_000, D, generator=torch.Generator().manual_seed(0))
    assert judged(str(perfect), X)["l0"] == pytest.approx(D)
    fields = json.loads((perfect / "cfg.json").read_text(encoding="utf-8"))
    fields |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}
    (perfect / "cfg.json").write_text(json.dumps(fields), encoding="utf-8")
    assert judged(str(perfect), X)["l0"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("spec", "width", "said"),
    [("nowhere", D, "no folder with a cfg.json"), ("{folder}", D + 1, "reads 6 dimensions; the activations have 7")],
)
def test_what_does_not_fit_is_refused_with_its_name(perfect, spec, width, said):
    with pytest.raises(ParameterError, match=said):
        open_published(asked(spec.format(folder=perfect)), width)


def test_a_hub_name_without_the_hub_says_so(perfect, monkeypatch):
    monkeypatch.setattr("rkcnn_lib.worlds.models.hub.hub_problem", lambda path: "no network")
    with pytest.raises(ParameterError, match="cannot be fetched: no network"):
        open_published(asked("owner/repository:blocks.8.hook_resid_pre_6144#centred"), 768)


def test_none_asked_gives_an_empty_table(perfect):
    assert judge_published({}, None, SimpleNamespace(p=asked(), device="cpu")).empty

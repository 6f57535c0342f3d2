"""A site in place of an older one: nothing foreign goes, no page is half written, one bad run stops no other."""

from __future__ import annotations

import json
import multiprocessing
import os

import pytest

from rkcnn_lib import cli
from rkcnn_lib.pages import site
from rkcnn_lib.pages.site import build_site, run_folders
from tests.pages.pages import VERDICT, dot_figure, read, write_run

TOY, PROBE, SAE = "01_toy_superposition", "02_probe_validation", "04_sae_compare"
DAMAGED = {
    "empty": "", "half": '{"notebook": "04_sae', "a list": "[]", "a field": '{"notebook": "x", "parameters": [1]}',
}  # fmt: skip


def listed(folder):
    return set(json.loads((folder / "site.json").read_text(encoding="utf-8"))["files"])


def present(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def pages(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.html")}


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / "runs", name, [dot_figure()]) for name in (TOY, PROBE)]


def test_a_site_lists_every_file_that_it_wrote(runs, tmp_path):
    folder = build_site(runs, tmp_path / "site").parent
    assert listed(folder) == present(folder)
    build_site(runs[:1], folder)
    assert listed(folder) == present(folder) and f"{PROBE}.html" not in present(folder)
    assert not (folder / "runs" / PROBE).exists(), "an empty folder is left behind"


def test_what_a_site_did_not_write_stays(runs, tmp_path):
    folder = build_site(runs, tmp_path / "pages").parent
    foreign = {".git/HEAD": "ref", "CNAME": "a.example", "notes.md": "mine", f"runs/{PROBE}/notes.txt": "mine too"}
    for name, text in foreign.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    build_site(runs[:1], folder)
    assert {name: (folder / name).read_text(encoding="utf-8") for name in foreign} == foreign
    assert present(folder) == listed(folder) | set(foreign)


def test_a_site_from_before_sites_listed_their_files_is_replaced_and_foreign_files_stay(runs, tmp_path):
    folder = build_site(runs, tmp_path / "site").parent
    record = json.loads((folder / "site.json").read_text(encoding="utf-8"))
    del record["files"]
    (folder / "site.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "CNAME").write_text("a.example", encoding="utf-8")
    build_site(runs[:1], folder)
    assert present(folder) == listed(folder) | {"CNAME"} and f"{PROBE}.html" not in present(folder)


@pytest.mark.parametrize(
    "name", ["../precious", "/etc/precious", "runs/../../precious", "runs//x", ".git/HEAD", "", 3, "link/precious"]
)
def test_a_list_that_names_no_plain_path_within_its_folder_is_refused(runs, tmp_path, name):
    folder = build_site(runs, tmp_path / "site").parent
    (tmp_path / "precious").write_text("precious", encoding="utf-8")
    (folder / "link").symlink_to(tmp_path)
    record = json.loads((folder / "site.json").read_text(encoding="utf-8"))
    (folder / "site.json").write_text(json.dumps(record | {"files": [*record["files"], name]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"site\.json lists .* no plain path within its folder"):
        build_site(runs[:1], folder)
    assert (tmp_path / "precious").is_file() and (folder / f"{PROBE}.html").is_file()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"title": "of another tool"}', '{"pages": [], "files": null}'])
def test_a_folder_whose_list_cannot_be_read_is_refused_by_name(tmp_path, text):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/site.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"site/site\.json"):
        build_site([], tmp_path / "site")


def test_a_foreign_file_where_a_page_has_to_go_is_not_overwritten(runs, tmp_path):
    folder = build_site(runs[:1], tmp_path / "site").parent
    (folder / f"{PROBE}.html").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{PROBE}\.html is not the site's"):
        build_site(runs, folder)
    assert (folder / f"{PROBE}.html").read_text(encoding="utf-8") == "mine" and TOY in (
        folder / "index.html"
    ).read_text(encoding="utf-8")


@pytest.mark.parametrize("at", ["cards.css", "run.json", "compare.html", f"{PROBE}.html", "index.html"])
def test_an_interrupted_build_leaves_each_page_old_or_new_and_the_next_one_ends_it(runs, tmp_path, monkeypatch, at):
    monkeypatch.setattr(site, "_now", lambda: "2026-01-01")
    new = pages(build_site(runs[1:], tmp_path / "other", title="New").parent)
    folder = build_site(runs[:1], tmp_path / "site", title="Old").parent
    old = pages(folder)
    put = site.write_whole

    def stop(path, write):
        if path.name == at:
            raise KeyboardInterrupt
        put(path, write)

    monkeypatch.setattr(site, "write_whole", stop)
    with pytest.raises(KeyboardInterrupt):
        build_site(runs[1:], folder, title="New")
    now = pages(folder)
    assert set(old) <= set(now) and all(now[name] in (old.get(name), new.get(name)) for name in now)
    assert present(folder) <= listed(folder), "what a killed build left is never removed"
    monkeypatch.setattr(site, "write_whole", put)
    build_site(runs[1:], folder, title="New")
    assert present(folder) == listed(folder) and f"{TOY}.html" not in present(folder)


def _build(runs, out, title):
    build_site(runs, out, title=title)


def test_four_builds_of_one_site_at_once_all_end_and_leave_one_whole_site(runs, tmp_path):
    started = multiprocessing.get_context("fork")
    jobs = [started.Process(target=_build, args=(runs[: 1 + i % 2], tmp_path / "site", f"Site {i}")) for i in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0] * 4
    folder = tmp_path / "site"
    assert present(folder) == listed(folder)
    title = json.loads((folder / "site.json").read_text(encoding="utf-8"))["title"]
    assert f"<title>{title}</title>" in (folder / "index.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "site"], "a folder or lock is left behind"


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_named_and_passed_over_when_found_and_refused_when_given(tmp_path, kind, capsys):
    good, bad = write_run(tmp_path / "runs", TOY), write_run(tmp_path / "runs", SAE)
    (bad / "run.json").write_text(DAMAGED[kind], encoding="utf-8")
    assert run_folders([tmp_path / "runs"]) == [good]
    assert str(bad / "run.json") in capsys.readouterr().err
    build_site([good], tmp_path / "site", also=[bad])
    assert f"{bad / 'run.json'}" in capsys.readouterr().err and (tmp_path / "site" / f"{TOY}.html").is_file()
    for refuse in (lambda: build_site([bad], tmp_path / "site"), lambda: run_folders([bad])):
        with pytest.raises(ValueError, match=rf"{bad.name}/run\.json"):
            refuse()


@pytest.mark.parametrize("name", ["metrics.parquet", "notebook.ipynb"])
def test_a_damaged_file_of_a_run_to_compare_with_is_named_and_that_run_left_out(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setenv("RKCNN_OUTPUTS", str(tmp_path))
    write_run(tmp_path / "runs", SAE, profile="quick", finished="2026-01-01", headline="good")
    bad = write_run(tmp_path / "older", SAE, profile="quick", headline="bad")
    (bad / name).write_text("{", encoding="utf-8")
    last = write_run(tmp_path / "older", SAE, profile="quick", headline="last")
    assert cli.main(["site", "--also", str(tmp_path / "older")]) == 0
    assert str(bad / name) in capsys.readouterr().err
    folder = tmp_path / "report"
    pages = json.loads((folder / "site.json").read_text(encoding="utf-8"))["pages"]
    assert [page["page"] for page in pages] == [f"{SAE}.html", f"{SAE}--run2.html"]
    assert "last" in read(folder / f"{SAE}--run2.html").select_one(".headline").get_text() and last.is_dir()
    assert present(folder) == listed(folder) and "bad" not in read(folder / "compare.html").get_text()


@pytest.mark.parametrize("name", ["run.json", "metrics.parquet", "notebook.ipynb"])
def test_a_link_among_the_files_of_a_run_is_refused_and_what_it_leads_to_stays_private(tmp_path, capsys, name):
    good, bad = write_run(tmp_path / "runs", TOY), write_run(tmp_path / "runs", SAE, headline="a secret")
    (bad / name).rename(tmp_path / "secret")
    (bad / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=rf"{name} is a link"):
        build_site([bad], tmp_path / "site")
    folder = build_site([good], tmp_path / "site", also=[bad]).parent
    assert f"{name} is a link" in capsys.readouterr().err
    assert len(json.loads((folder / "site.json").read_text(encoding="utf-8"))["pages"]) == 1
    assert not [path for path in folder.rglob("*.html") if "a secret" in path.read_text(encoding="utf-8")]


def test_a_pipe_in_place_of_a_file_holds_up_nothing(tmp_path):
    run = write_run(tmp_path / "runs", TOY)
    (run / "metrics.parquet").unlink()
    os.mkfifo(run / "metrics.parquet")
    with pytest.raises(ValueError, match=r"metrics\.parquet is a link or no file"):
        build_site([run], tmp_path / "site")


ODD = [[], {}, "x", 3, True, [1], {"a": 1}, [{"a": 1}]]


def test_a_field_of_another_kind_is_shown_or_named(tmp_path, capsys):
    first = write_run(tmp_path / "runs", SAE, executed=False, verdicts=[VERDICT], earlier_gates={TOY: "PASS"}, model={})
    record = json.loads((first / "run.json").read_text(encoding="utf-8"))
    places = [(name,) for name in [*record, "strongest", "remarks", "withdrawn", "gates_since"]]
    places += [("gate", "checks"), ("gate", "verdict"), ("provenance", "git_commit"), ("provenance", "device")]
    places += [("model", "name"), ("earlier_gates", TOY), ("parameters", "arms"), ("parameters", "layer")]
    runs = []
    for i, (name, *inner) in enumerate(places):
        for k, odd in enumerate(ODD):
            runs.append(tmp_path / "odd" / f"{i}-{k}")
            changed = record | {name: record[name] | {inner[0]: odd} if inner else odd}
            runs[-1].mkdir(parents=True)
            (runs[-1] / "run.json").write_text(json.dumps(changed), encoding="utf-8")
    folder = build_site([first], tmp_path / "site", also=runs).parent
    shown = len(json.loads((folder / "site.json").read_text(encoding="utf-8"))["pages"])
    named = capsys.readouterr().err.count("/run.json")
    assert named > 20 and shown > 20 and shown + named == len(runs) + 1


def test_names_of_runs_fit_into_what_a_file_system_takes(tmp_path):
    run = write_run(tmp_path / "runs", SAE, variant="語" * 100)
    folder = build_site([run], tmp_path / "site").parent
    assert max(len(path.name.encode()) for path in folder.glob("*.html")) < 150

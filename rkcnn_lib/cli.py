"""The ``rkcnn`` command: run one notebook, a whole profile or a sweep, build the pages, look the machine over."""

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from rkcnn_lib.files import outputs_root
from rkcnn_lib.runs.fields import ParameterError, yaml_value
from rkcnn_lib.runs.gates import judged, latest_run, read_run
from rkcnn_lib.runs.machine import caches, examine
from rkcnn_lib.runs.params import NOTEBOOK_FOLDER, NOTEBOOKS, ROOT, check_notebook, read_parameter_file, resolve
from rkcnn_lib.runs.run import execute

# What a dry run keeps of the profile: its inputs. The sizes are the smoke profile's.
KEPT_BY_DRY_RUN = (
    "model", "revision", "layer", "layers", "hook", "text", "context_size", "relation", "isolated", "positions"
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 for a run, gate or file that failed, 2 for refused input, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    before = signal.signal(signal.SIGINT, _stop_all)
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character shows its number
        if options.verb in ("report", "run", "sweep", "site") and not NOTEBOOK_FOLDER.is_dir():
            raise ParameterError(
                f"`rkcnn {options.verb}` needs the notebooks, which an installed package does not hold: call it in a "
                "checkout of the project (its top folder, where notebooks/ and params/ are)"
            )
        return options.call(options)
    except KeyboardInterrupt:
        print("rkcnn: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:  # refused input; a full disk, a folder that may not be written to
        print(f"rkcnn: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError | FileNotFoundError) else 1
    except RuntimeError as error:  # ModelUnavailable, GateFailed, a GPU that cannot be used: say it, no traceback
        print(f"rkcnn: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGINT, before)


def _stop_all(*_: Any) -> None:
    """On Ctrl-C end kernels and workers at once, before each of them prints where it was: what is finished is kept."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    logging.disable()  # that a kernel died was meant; nbclient and asyncio would tell of it, with a traceback
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rkcnn", description=__doc__)
    verbs = parser.add_subparsers(required=True, dest="verb", metavar="VERB")

    report = verbs.add_parser("report", help="run all notebooks of a profile in order, then build the pages")
    report.add_argument("profile", type=Path, help="a folder of parameter files, such as params/quick")
    report.add_argument("--force", action="store_true", help="go on after a failed gate (verdicts then ungated)")
    report.add_argument("--dry-run", action="store_true", help="this profile's models and texts at smoke sizes")
    report.add_argument("--yes", action="store_true", help="do not ask before a long profile starts")
    report.add_argument("--out", type=Path, help="where the pages go (default: outputs/report)")
    report.set_defaults(call=_report)

    run = verbs.add_parser("run", help="run one notebook")
    run.add_argument("notebook", help="such as 04_sae_compare")
    run.add_argument("-f", "--file", type=Path, help="YAML file of parameters")
    run.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    run.add_argument("--force", action="store_true", help="go on although an earlier gate failed")
    run.add_argument("--again", action="store_true", help="run although this very run is finished")
    run.add_argument("--cell-timeout", type=int, help="seconds a cell may take (default: no limit)")
    run.set_defaults(call=_run)

    mine = verbs.add_parser("mine", help="write starting weights for an SAE training of one's own")
    mine.add_argument("--model", required=True, help="hub name, folder, or an embedded model such as atlas")
    mine.add_argument("--layer", type=int, required=True, help="block to read; -1 is the last")
    mine.add_argument("--hook", required=True, help="resid_pre, resid_post, mlp_out, mlp_post or attn_out")
    mine.add_argument("--out", type=Path, required=True, help="a new folder for the weights")
    mine.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    mine.set_defaults(call=_mine)

    sweep = verbs.add_parser("sweep", help="run 05's comparison over a grid of settings; finished units are kept")
    sweep.add_argument("file", type=Path, help="a sweep file, such as params/quick/sweeps/atlas.yaml")
    sweep.add_argument("--out", type=Path, required=True, help="folder for its tables")
    sweep.add_argument("--resume", action="store_true", help="go on in a folder that holds this sweep")
    sweep.add_argument("--cluster", metavar="ADDRESS", help="a Ray cluster: auto, HOST:PORT or ray://HOST:PORT")
    sweep.add_argument("--yes", action="store_true", help="do not ask before a long sweep starts")
    sweep.set_defaults(call=_sweep)

    site = verbs.add_parser("site", help="build the pages from the runs of a profile")
    site.add_argument("profile", type=Path, nargs="?", default=Path("params/quick"))
    site.add_argument("--out", type=Path, help="folder of the pages, or the single file (default: outputs/report)")
    also = "further run folders, or folders that hold some, to compare with (such as outputs/runs)"
    site.add_argument("--also", type=Path, nargs="+", default=[], metavar="FOLDER", help=also)
    single = "one HTML file with everything inside: a notebook's latest run, or a run folder"
    site.add_argument("--single-file", metavar="NOTEBOOK", help=single)
    site.set_defaults(call=_site)

    cache = verbs.add_parser("cache", help="activations on this machine: list, check, remove")
    cache.add_argument("action", choices=("ls", "verify", "rm"))
    cache.add_argument("names", nargs="*", metavar="NAME", help="names as ls shows them, or their beginnings")
    cache.set_defaults(call=lambda options: caches(options.action, options.names))

    doctor = verbs.add_parser("doctor", help="versions, device, hub, and what this machine can run")
    doctor.set_defaults(call=lambda _: examine())
    return parser


def profile_parameters(profile: Path) -> dict[str, dict[str, Any]]:
    """Return what a profile gives of each notebook it has a file for, in order; variants (``--NAME``) are left out."""
    folder = profile if profile.is_dir() else ROOT / profile
    if not folder.is_dir():
        known = ", ".join(sorted(f"params/{path.name}" for path in (ROOT / "params").iterdir() if path.is_dir()))
        raise ParameterError(f"no profile {profile}; there are {known}")
    files = {path.stem: path for path in sorted(folder.glob("*.yaml")) if "--" not in path.stem}
    for stem in files:
        check_notebook(stem)
    if not files:
        raise ParameterError(f"{folder} holds no parameter file such as 04_sae_compare.yaml")
    return {name: read_parameter_file(files[name]) for name in NOTEBOOKS if name in files}


def _report(options: argparse.Namespace) -> int:
    from rkcnn_lib.studies.plan import confirm

    plans, forced = {}, {"force": True} if options.force else {}
    smoke = profile_parameters(ROOT / "params/smoke") if options.dry_run else {}
    for notebook, given in profile_parameters(options.profile).items():  # refuse the bad before compute
        asked = resolve(notebook, given)
        kept = {name: value for name, value in asked if name in KEPT_BY_DRY_RUN and (name != "layers" or name in given)}
        plans[notebook] = resolve(notebook, (smoke[notebook] | kept if options.dry_run else given) | forced)
    if not confirm(plans, yes=options.yes):
        return 2
    profile, notebook, failed = next(iter(plans.values())).profile, "", False
    with ThreadPoolExecutor(1) as writer:  # pages are written while the next kernel works
        for notebook, values in plans.items():
            folder = execute(notebook, values)  # in a kernel of its own
            if folder is None:
                print(f"rkcnn: {notebook} did not finish; what is finished is kept", file=sys.stderr)
                return 1
            failed = judged(read_run(folder) or {}) == "FAIL" and not options.force
            if failed or notebook == list(plans)[-1]:
                break
            writer.submit(_pages, profile, options.out, so_far=True)
    _pages(profile, options.out)
    if failed:
        small = " (as gates may at smoke sizes)" * (profile == "smoke")
        print(f"rkcnn: the gate of {notebook} FAILED{small}; --force goes on all the same", file=sys.stderr)
    return int(failed)


def _run(options: argparse.Namespace) -> int:
    given = read_parameter_file(options.file) if options.file else {}
    given |= parsed(options.parameter) | ({"force": True} if options.force else {})
    values = resolve(options.notebook, given)
    return int(execute(options.notebook, values, again=options.again, cell_timeout=options.cell_timeout) is None)


def parsed(parameters: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the values of ``-p NAME VALUE`` pairs; VALUE is YAML, or None."""
    return {name: yaml_value(text, f"-p {name}") for name, text in parameters}


def _mine(options: argparse.Namespace) -> int:
    from rkcnn_lib.studies.comparison import write_start

    named = {name: getattr(options, name) for name in ("model", "layer", "hook")}
    out = write_start(named | parsed(options.parameter), options.out)
    print(f"rkcnn: {out} holds the start: cfg.json and sae_weights.safetensors, and start.json on how it was made")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from rkcnn_lib.studies.sweeps import sweep

    return sweep(options.file, options.out, options.resume, cluster=options.cluster, yes=options.yes)


def _site(options: argparse.Namespace) -> int:
    from rkcnn_lib.pages.site import single_file

    (profile,) = {resolve(name, given).profile for name, given in profile_parameters(options.profile).items()}
    if options.single_file is None:
        _pages(profile, options.out, options.also)
        return 0
    if options.also:
        raise ParameterError("--also compares runs over pages; a single file holds one run")
    run: Path | None = Path(options.single_file)
    if not (run / "run.json").is_file():
        notebook = check_notebook(options.single_file)
        run = latest_run(notebook, profile)
        if run is None:
            raise ParameterError(f"no finished run of {notebook} under profile {profile!r}; name a run folder instead")
    out = options.out or outputs_root() / f"{run.resolve().parent.name}.html"
    page = single_file(run, out)
    print(f"rkcnn: {page} ({page.stat().st_size / 1e6:.2f} MB, needs nothing beside it)")
    return 0


def _pages(profile: str, out: Path | None, also: Sequence[Path] = (), so_far: bool = False) -> None:
    from rkcnn_lib.pages.site import build_site, run_folders, weight_lines

    runs = [folder for folder in (latest_run(notebook, profile) for notebook in NOTEBOOKS) if folder]
    index = build_site(runs, out or outputs_root() / "report", also=run_folders(also))
    if not so_far:
        print("\n".join(weight_lines(index.parent)))
    print(f"rkcnn: pages of profile {profile!r}{' so far' * so_far}: {index}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

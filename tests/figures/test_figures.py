"""Every figure draws, refuses nothing-to-draw, escapes what it is given and speaks one visual language."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from rkcnn_lib import figures, vocabulary
from rkcnn_lib.figures.display import HERO, MIMETYPE, TITLE
from rkcnn_lib.figures.style import CHANCE_FILL, STYLES

EVIL = "<img src=x onerror=alert(1)>"
ARMS = ["random", "kmeans", "rkcnn", "something else"]
rng = np.random.default_rng(0)


def rows(**columns):
    """All combinations of the given columns, with a value, an interval and a chance level each."""
    index = pd.MultiIndex.from_product(columns.values(), names=list(columns)).to_frame(index=False)
    value = 0.5 + 0.1 * rng.normal(size=len(index))
    extra = {"value": value, "low": value - 0.1, "high": value + 0.1, "chance_mean": 0.2, "chance_upper": 0.3}
    return index.assign(**extra)


def unit(n, d=2):
    vectors = rng.normal(size=(n, d))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


MINERS = rows(miner=ARMS, seed=[0, 1, 2], metric=["mmcs", "recovery_rate"])
ARM_ROWS = rows(arm=ARMS, seed=[0, 1, 2], metric=["ev", "dead"])
CONTRASTS = rows(contrast=["rkcnn - random", "rkcnn - rkcnn_unscored"], metric=["ev", "dead"]).assign(
    difference=lambda t: t["value"], delta=0.05, n_seeds=5, verdict=["supported", "inconclusive", None, "not supported"]
)
TOY = rows(probability=[0.01, 0.1], instance=[0, 1, 2]).assign(loss=0.1, n_represented=5, mean_dimensionality=0.4)
SELECTIVITY = rows(group=["top", "random", "bottom", "full"], seed=[0, 1, 2], probe=["kNN", "RkCNN"])
CURVE = rows(n_features=[5, 10], miner=ARMS, seed=[0, 1], metric=["mmcs"])
CAUSAL = rows(subspace=["rkcnn", "random", "clean"], intervention=["keep", "ablate"], metric=["logit_difference"])

TABLES = {
    "toy_curves": TOY,
    "recovery_by_miner": MINERS,
    "recovery_curves": rows(axis=["features", "noise"], x=[1, 50], miner=ARMS, seed=[0, 1], metric=["mmcs"]),
    "selectivity": SELECTIVITY,
    "norms_by_position": pd.DataFrame({"position": range(9), "q10": 1.0, "median": 2.0, "q90": 3.0}),
    "variance_by_dimension": pd.DataFrame({"dimension": range(9), "share": np.full(9, 1 / 9), "kurtosis": 2.0}),
    "frequency_power": rows(frequency=range(1, 9)).assign(is_key=lambda t: t["frequency"] < 3),
    "arm_metrics": ARM_ROWS,
    "quality_front": rows(arm=ARMS, seed=[0, 1], k=[8, 16, 32], metric=["ev", "delta_ce"]).assign(l0=lambda t: t["k"]),
    "training_curves": rows(arm=ARMS, seed=[0, 1], step=[1, 10, 100], metric=["ev", "loss"]),
    "paired_differences": CONTRASTS,
    "layer_heatmap": rows(layer=[2, 4], arm=ARMS, metric=["ev", "dead"]),
    "layer_differences": rows(layer=[2, 4], contrast=["a - b", "c - b"]).assign(difference=0.1, delta=0.05),
    "sensitivity": rows(axis=["k", "score"], x=[8, 16, "none"], arm=ARMS, seed=[0, 1], metric=["ev", "dead"]),
    "causal_effects": CAUSAL,
    "funnel": rows(stage=["drawn", "kept", "live"], arm=ARMS, seed=[0, 1]).assign(value=9.0),
    "causal_by_layer": rows(layer=[2, 4], subspace=["rkcnn", "clean"], intervention=["keep"], metric=["kl"]),
}
ARRAYS = {
    "toy_directions": {"p = 0.1": unit(5), "p = 0.01": unit(5)},
    "mined_versus_true": {"rkcnn": np.eye(4) * 0.9, "kmeans": np.eye(4)[:, :3] * 0.8},
    "mined_slider": {"noise": (unit(5), unit(3)), "mined": (unit(5), unit(3))},
    "score_distribution": {"data": rng.gamma(2, 1, 200)},
    "spectrum": {"layer 2": np.arange(1.0, 20), "layer 4": np.arange(1.0, 9)},
    "cosine_histograms": {str(t): {"mined": np.full(9, 0.5), "random": np.zeros(9)} for t in (0, 10, 100)},
    "density": {"random": np.array([0, 0.01, 0.5]), "rkcnn": np.array([0.1, 0.001, 1e-5])},
}
SLIDERS = ("toy_directions", "mined_slider", "cosine_histograms")


def draw(name, data=None):
    data = data if data is not None else {**TABLES, **ARRAYS}[name]
    function = getattr(figures, name)
    return function(data, "probability") if name == "recovery_curve" else function(data)


@pytest.mark.parametrize("name", [*TABLES, *ARRAYS])
def test_draws_with_units_and_template_and_leaves_the_title_to_show(name):
    fig = draw(name)
    assert isinstance(fig, go.Figure) and type(fig).__name__ == "Figure"
    assert len(fig.data) and fig.layout.title.text is None and fig.layout.height > 200
    assert fig.layout.template.layout.font.family == pio.templates["rkcnn"].layout.font.family
    titles = [axis.title.text for axis in fig.select_xaxes()] + [axis.title.text for axis in fig.select_yaxes()]
    assert any(titles), "no axis says what it shows"
    json.loads(fig.to_json())


@pytest.mark.parametrize("name", TABLES)
def test_refuses_empty_and_incomplete_tables(name):
    table = TABLES[name]
    with pytest.raises(ValueError, match="no rows"):
        draw(name, table.iloc[:0])
    with pytest.raises(ValueError, match="lacks"):
        draw(name, table[["value"]] if "value" in table else table[["position"]] if "position" in table else table[[]])


def test_refuses_a_table_without_a_finite_value():
    with pytest.raises(ValueError, match="finite"):
        figures.arm_metrics(ARM_ROWS.assign(value=np.nan))


@pytest.mark.parametrize("name", SLIDERS)
def test_sliders_have_as_many_steps_as_frames(name):
    fig = draw(name)
    (slider,) = fig.layout.sliders
    assert len(slider.steps) == len(fig.frames) == len(ARRAYS[name])
    assert [step.args[0][0] for step in slider.steps] == [frame.name for frame in fig.frames]
    # Inside frames browsers read plain lists, not binary blocks.
    assert "bdata" not in json.dumps(json.loads(fig.to_json())["frames"])


def test_one_frame_has_no_slider_that_could_not_be_moved():
    for fig in (figures.mined_slider({"mined": (unit(5), unit(3))}), figures.toy_directions({"p = 0.1": unit(5)})):
        assert not fig.layout.sliders


def test_few_probabilities_are_named_one_by_one_on_a_logarithmic_axis():
    ticks = draw("toy_curves").layout.xaxis
    assert list(ticks.tickvals) == sorted(TABLES["toy_curves"]["probability"].unique())
    assert all("." in text or text == "1" for text in ticks.ticktext)


def test_a_slider_step_shows_its_own_frame():
    fig = figures.toy_directions({"a": [[1.0, 0.0]], "b": [[0.0, 0.5]]})
    assert list(fig.frames[1].data[1].x) == [0.0] and list(fig.frames[1].data[1].y) == [0.5]


@pytest.mark.parametrize("name", SLIDERS)
def test_a_figure_shows_the_frame_that_its_slider_stands_at(name):
    fig = draw(name)
    for drawn, framed in zip(fig.data, fig.frames[fig.layout.sliders[0].active].data, strict=False):
        np.testing.assert_array_equal(np.array(drawn.x, dtype=float), np.array(framed.x, dtype=float))


@pytest.mark.parametrize("name", ["arm_metrics", "recovery_by_miner", "layer_heatmap", "training_curves"])
def test_drop_down_shows_one_metric_at_a_time(name):
    fig = draw(name)
    buttons = fig.layout.updatemenus[0].buttons
    shown = np.array([button.args[0]["visible"] for button in buttons])
    assert len(buttons) == 2 and shown.shape[1] == len(fig.data)
    assert (shown.sum(axis=0) == 1).all(), "each trace belongs to exactly one metric"
    assert [trace.visible is not False for trace in fig.data] == list(shown[0])


def test_the_heat_map_s_second_drop_down_fills_all_metrics_with_another_hook_s_values():
    one = TABLES["layer_heatmap"]
    both = pd.concat([one.assign(hook="mlp_out"), one.assign(hook="resid_post", value=one["value"] + 10)])
    fig, other = figures.layer_heatmap(both), figures.layer_heatmap(one.assign(value=one["value"] + 10))
    assert [list(map(list, trace.z)) for trace in fig.data] == [
        list(map(list, t.z)) for t in draw("layer_heatmap").data
    ]
    (first, second) = fig.layout.updatemenus[1].buttons
    assert [first.label, second.label] == ["mlp_out", "resid_post"] and second.method == "restyle"
    for name in ("z", "text"):
        expected = [[list(row) for row in trace[name]] for trace in other.data]
        assert [[list(row) for row in cells] for cells in second.args[0][name]] == expected


def test_the_funnel_shows_stages_in_order_means_over_seeds_and_zero_at_its_foot():
    counts = {"drawn": [600, 600], "kept": [90, 110], "live": [0, 0]}
    table = pd.DataFrame(
        {"arm": "rkcnn", "seed": seed, "stage": stage, "value": value}
        for seed in (0, 1) for stage, value in ((name, values[seed]) for name, values in counts.items())
    )  # fmt: skip
    fig = figures.funnel(table)
    (line,), axis = fig.data, fig.layout.yaxis
    assert list(fig.layout.xaxis.ticktext) == list(counts) and list(line.x) == [0, 1, 2]
    assert list(line.y[:2]) == [600, 100] and line.y[2] == axis.tickvals[0] and axis.ticktext[0] == "0"
    assert axis.type == "log" and 10 ** axis.range[0] < line.y[2] and 10 ** axis.range[1] > 600
    assert line.text[1] == "kept: 100, seeds from 90 to 110" and "live: 0" in line.text[2]


def test_one_metric_needs_no_drop_down():
    assert not figures.arm_metrics(ARM_ROWS[ARM_ROWS["metric"] == "ev"]).layout.updatemenus


def test_arms_keep_colour_and_marker_across_figures():
    for arm in ARMS:
        expected = (figures.style_of(arm).colour, figures.style_of(arm).marker)
        dots = figures.arm_metrics(ARM_ROWS[ARM_ROWS["arm"] == arm])
        lines = figures.quality_front(TABLES["quality_front"].query("arm == @arm"))
        miners = figures.recovery_by_miner(MINERS[MINERS["miner"] == arm])
        for fig in (dots, lines, miners):
            seen = {(t.marker.color or t.line.color, t.marker.symbol) for t in fig.data if t.marker.symbol is not None}
            assert seen and {symbol for _, symbol in seen} == {expected[1]}
            assert {colour for colour, _ in seen} == {expected[0]}


def test_no_two_arms_look_the_same():
    colours, markers = ({getattr(style, of) for style in STYLES.values()} for of in ("colour", "marker"))
    assert len(colours) == len(markers) == len(STYLES) == len(vocabulary.ARMS)


def test_colours_are_readable_on_white_and_on_a_dark_page():
    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for name in [*STYLES, "unknown", "another", "third"]:
        value = luminance(figures.style_of(name).colour)
        assert 1.05 / (value + 0.05) >= 2.95 and (value + 0.05) / (luminance("#14171c") + 0.05) >= 2.95, name


def test_chance_is_the_same_grey_everywhere():
    for fig in (draw("recovery_by_miner"), draw("selectivity"), figures.recovery_curve(CURVE, "n_features")):
        fills = {t.fillcolor for t in fig.data if t.name and ("chance" in t.name or "permuted" in t.name)}
        assert fills == {CHANCE_FILL}


def test_a_shared_chance_level_is_drawn_once():
    fig = figures.recovery_curve(CURVE, "n_features")
    assert sum(t.name == "chance: mean to 95 % point" for t in fig.data) == 1
    with pytest.raises(ValueError, match="no rows"):
        figures.recovery_curve(CURVE.iloc[:0], "n_features")


def test_interval_is_that_of_the_seeds_and_absent_for_one_seed():
    table = ARM_ROWS[(ARM_ROWS["metric"] == "ev") & (ARM_ROWS["arm"] == "random")]
    mean = next(t for t in figures.arm_metrics(table).data if t.error_x.visible)
    values = table["value"].to_numpy()
    half = 4.302653 * values.std(ddof=1) / np.sqrt(3)  # Student's t, 2 degrees of freedom
    assert mean.x[0] == pytest.approx(values.mean())
    assert mean.error_x.array[0] == pytest.approx(half, rel=1e-5)
    single = figures.arm_metrics(table[table["seed"] == 0])
    assert not any(t.error_x.visible for t in single.data if t.error_x.array is not None)
    assert "no interval" in next(t.hovertemplate for t in single.data if "mean of 1" in (t.hovertemplate or ""))


def test_selectivity_counts_seeds_and_not_labels():
    table = rows(group=["top"], label=["a", "b", "c"], seed=[0])
    fig = figures.selectivity(table)
    assert any("one seed: no interval" in (t.hovertemplate or "") for t in fig.data)
    band = next(t for t in fig.data if "permuted" in (t.name or ""))
    assert (min(band.x), max(band.x)) == pytest.approx((0.2, 0.3))


def test_infinite_intervals_are_not_drawn():
    fig = figures.paired_differences(CONTRASTS.assign(low=-np.inf, high=np.inf))
    assert all(np.isfinite(t.error_x.array).all() for t in fig.data if t.error_x.array is not None)
    assert np.isfinite(fig.layout.xaxis.range).all()


def test_margins_are_drawn_at_plus_and_minus_delta():
    fig = figures.paired_differences(CONTRASTS[CONTRASTS["metric"] == "ev"])
    boxes = [t for t in fig.data if t.name == "within the margin ±δ"]
    assert len(boxes) == 2 and all(min(b.x) == -0.05 and max(b.x) == 0.05 for b in boxes)


def test_signed_colours_are_centred_on_zero():
    heat = figures.interference(np.array([[1.0, 0.0], [0.6, 0.8]])).data[0]
    assert heat.zmin == -heat.zmax
    signed = figures.layer_heatmap(TABLES["layer_heatmap"].assign(value=lambda t: np.linspace(-1, 2, len(t))))
    assert signed.data[0].zmin == -signed.data[0].zmax


def test_subspaces_that_are_not_drawn_come_with_a_choice_of_their_own():
    fig = figures.causal_effects(CAUSAL, drawn=["random"])
    names = [button.label for button in fig.layout.updatemenus[0].buttons]
    n_metrics = CAUSAL["metric"].nunique() if "metric" in CAUSAL else 1
    assert len(names) == 2 * n_metrics and all(name.endswith("every subspace") for name in names[n_metrics:])
    assert list(fig.layout.yaxis.ticktext) == ["random", "rkcnn"] and fig.layout.yaxis.range == (0.6, -0.6)
    assert fig.layout.updatemenus[0].buttons[-1].args[1]["yaxis.range"] == [1.6, -0.6]


def test_series_that_are_not_drawn_wait_in_the_legend_of_every_choice():
    table = pd.concat([CURVE.assign(miner=miner) for miner in ("rkcnn", "kmeans")])
    table = pd.concat([table.assign(metric="recovery_rate"), table.assign(metric="precision")])
    fig = figures.recovery_curve(table, "n_features", drawn=["rkcnn"])
    for i, button in enumerate(fig.layout.updatemenus[0].buttons):
        shown = {  # lines and the bands of their seeds
            (trace.legendgroup, how)
            for trace, how in zip(fig.data, button.args[0]["visible"], strict=True)
            if how and trace.legendgroup != "chance"
        }
        assert shown == {("rkcnn", True), ("kmeans", "legendonly")}, i


def test_references_become_lines_and_not_rows():
    fig = draw("causal_effects")
    assert any((t.name or "").startswith("clean") for t in fig.data)
    assert list(fig.layout.yaxis.ticktext) == ["rkcnn", "random"]


def test_dead_latents_have_their_own_bar():
    fig = draw("density")
    assert [t.y[0] for t in fig.data if t.type == "bar"] == pytest.approx([1 / 3, 0])


@pytest.mark.parametrize(
    "fig",
    [
        lambda: figures.arm_metrics(ARM_ROWS.assign(arm=EVIL, metric=EVIL, seed=EVIL)),
        lambda: figures.training_curves(TABLES["training_curves"].assign(arm=EVIL, metric=EVIL)),
        lambda: figures.paired_differences(CONTRASTS.assign(contrast=EVIL, metric=EVIL, verdict=EVIL, n_seeds=EVIL)),
        lambda: figures.recovery_curve(CURVE.assign(miner=EVIL, metric=EVIL), "n_features"),
        lambda: figures.selectivity(SELECTIVITY.assign(group=EVIL, seed=EVIL, probe=EVIL)),
        lambda: figures.mined_versus_true({EVIL: np.eye(3)}),
        lambda: figures.mined_slider({EVIL: (unit(3), unit(3)), "end": (unit(3), unit(3))}),
        lambda: figures.score_distribution({EVIL: np.arange(9.0)}),
        lambda: figures.spectrum({EVIL: np.arange(1.0, 9)}),
        lambda: figures.cosine_histograms({EVIL: {EVIL: np.zeros(3)}}),
        lambda: figures.density({EVIL: np.array([0.1, 0.2])}),
        lambda: figures.layer_heatmap(TABLES["layer_heatmap"].assign(arm=EVIL, metric=EVIL)),
        lambda: figures.layer_differences(TABLES["layer_differences"].assign(contrast=EVIL, metric=EVIL)),
        lambda: figures.causal_effects(CAUSAL.assign(subspace=EVIL, intervention=EVIL, metric=EVIL)),
        lambda: figures.causal_by_layer(TABLES["causal_by_layer"].assign(subspace=EVIL, metric=EVIL)),
        lambda: figures.variance_by_dimension(TABLES["variance_by_dimension"].assign(dimension=EVIL)),
        lambda: figures.toy_curves(TOY.assign(instance=EVIL)),
        lambda: figures.funnel(TABLES["funnel"].assign(arm=EVIL, stage=EVIL)),
    ],
)
def test_text_from_data_is_escaped(fig):
    assert not re.search(r"<img", json.dumps(json.loads(fig().to_json()), ensure_ascii=False))


def test_show_gives_the_title_then_the_figure_then_its_note(monkeypatch):
    shown = []
    monkeypatch.setattr("rkcnn_lib.figures.display.display", lambda *a, **k: shown.append((a[0], k.get("metadata"))))
    figures.show(draw("arm_metrics"), f"A finding {EVIL}", f"Dots are seeds {EVIL}", hero=True)
    (title, _), (figure, about), (note, _) = shown
    assert "<b>A finding" in title.data and "<img" not in title.data
    assert about == {TITLE: f"A finding {EVIL}", HERO: f"Dots are seeds {EVIL}"}
    assert "A finding" not in json.dumps(figure[MIMETYPE]), "no title travels inside plotly"
    assert "Figure note." in note.data and "<img" not in note.data


def test_show_refuses_a_figure_without_traces_title_or_note():
    with pytest.raises(ValueError, match="note"):
        figures.show(draw("arm_metrics"), "title", " ")
    with pytest.raises(ValueError, match="title"):
        figures.show(draw("arm_metrics"), "", "note")
    with pytest.raises(ValueError, match="traces"):
        figures.show(go.Figure(), "title", "note")

# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Can random subsets find features in superposition?
#
# Before asking whether mined directions help on a language model, ask whether mining finds features at all, where we
# know them. A toy model of superposition (Elhage et al. 2022) squeezes more sparse features into a hidden layer than it
# has dimensions; its weights are the true directions. Random-subset probing sees the hidden states only. It goes on to
# the next notebook if it finds more of the true directions than as many random directions do.
#
# *First time in JupyterLab?* After `make report` open `outputs/runs/01_toy_superposition/.../notebook.ipynb`, the copy that it
# executed, and click *Run ▸ Run All Cells*: its sizes are small and finished work is read from disk, so after some seconds you
# can move the explorer near the end. Here, at full size, all cells take far longer; the cell below holds the sizes.

# %% tags=["parameters"]
profile: str = "gpt2"  # name of the parameter set; smoke and quick runs carry a banner
n_subsets: int = 600  # random subsets drawn (at least 3 x n_directions)
subset_size: int = None  # coordinates in a subset; None: round(sqrt(width))
score: str = "neighbours"  # neighbours, kurtosis, logcosh or skew
subsets: str = "coordinate"  # coordinate (rotated where too few) or rotated
n_directions: int = 40  # directions (02: subsets) kept at most
control: str = "none"  # none; gaussian: noise in place of activations; permuted: the truth shuffled
n_seeds: int = 10  # toy models, each with its own subsets
n_features: int = 20  # features of the toy model
n_hidden: int = 5  # its hidden dimensions
n_active: int = 2  # features active in each sample
toy_steps: int = 2000  # its training steps
n_samples: int = 20_000  # its hidden states
null: str = "gaussian"  # surrogate that calibrates: gaussian, elliptical or None
miners: list = ["pca", "ica", "kmeans_refined", "rkcnn_coordinate", "rkcnn", "rkcnn_unscored"]  # compared
plane_probabilities: list = [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]  # of a feature, 5 -> 2 models
plane_instances: int = 20  # models trained at each probability
plane_steps: int = 2000  # training steps of the 5 -> 2 models
curve_seeds: int = 10  # toy models at each point of a curve
curve_features: list = [8, 12, 16, 20, 28, 40]  # recovery against the number of features; [] leaves a curve out
curve_active: list = [1, 2, 3, 4]  # against the number of active features
curve_noise: list = [0.0, 0.05, 0.1, 0.2, 0.4]  # against noise, as a share of the hidden states' root mean square
curve_subset_size: list = [2, 3, 4]  # against the coordinates in a subset
curve_n_subsets: list = [120, 300, 600, 1200]  # against the subsets drawn
curve_n_samples: list = [500, 1000, 2000, 5000, 20_000]  # against the hidden states mined
device: str = None  # "cpu", "cuda" or None: the GPU where there is one
force: bool = False  # go on although an earlier gate failed
n_jobs: int = None  # processes at once; None: one a core, or one where there is a GPU

# %%
from rkcnn_lib import figures
from rkcnn_lib.pages import explore
from rkcnn_lib.runs.run import start_run
from rkcnn_lib.studies import curves, planes, toy

run = start_run("01_toy_superposition", globals())

# %% [markdown]
# ## Five features in a plane
#
# The smallest case that can be drawn: 5 features, 2 hidden dimensions. When features are often active the model keeps
# two and drops the rest; as they grow rare it packs more, up to all five as a pentagon. Many models are trained at each
# probability, because a single picture proves nothing; the one drawn is that of median loss.

# %%
plane = planes.train_planes(run.p)
figures.show(
    figures.toy_directions(planes.median_instances(plane)),
    planes.plane_title(plane),
    f"Arrows are the features' directions in the hidden plane, model of median loss out of {run.p.plane_instances}; "
    "the slider goes from often active to rare.",
)

# %%
run.metrics(planes.plane_metrics(plane))
figures.show(
    figures.toy_curves(plane.table),
    planes.curve_title(plane),
    f"Dots are models, {run.p.plane_instances} at each probability, the line their median; choose loss, number of "
    "represented features (norm above 0.5) or mean dimensionality at the top.",
)

# %% [markdown]
# Now the same models are mined: the miner sees hidden states only, two numbers each, and returns at most ten directions
# for up to five features. Five *random* directions would match a pentagon at 0.72 on average (95 % point 0.91), so only
# cosines well above that say anything.

# %%
plane_mined = planes.mine_planes(plane, run)
run.metrics(plane_mined.rename(columns={"matched_cosine": "value"}).assign(metric="matched_cosine", miner="rkcnn"))
figures.show(
    figures.mined_slider(planes.mined_frames(plane, run)),
    planes.mined_title(plane_mined),
    "True and mined directions of the model of median loss at each probability (slider). All models are mined; the title "
    "counts those that formed a pentagon.",
)

# %% [markdown]
# ## Twenty features in five dimensions
#
# The model that is mined: more features than dimensions, a fixed number active at a time. Off the diagonal of `W W^T`
# stands the interference between features; a perfect code would have none.

# %%
spaces = toy.train_spaces(run.p)
figures.show(
    figures.interference(spaces[0].W),
    toy.interference_title(spaces),
    "Seed 0. Features that the model dropped have an empty row; those with norm above 0.5 count as true directions.",
)

# %% [markdown]
# ## What each miner finds
#
# Every miner sees the same hidden states and returns at most the same number of directions. They are matched one to one
# with the true directions, signs included. Chance is the same matching with as many random unit directions: in five
# dimensions it is high, which is why a cosine alone means nothing here. `rkcnn_unscored` is `rkcnn` with subsets
# taken at random instead of by score: what lies between them is what the score adds. So small a world is soon
# exhausted: in the last rounds fewer than three candidates are left for a place, and the score has a choice in the
# first ones only. `rkcnn_calibrated` keeps only directions that beat the maximum of the same search on a surrogate
# without features; the gate judges it alone.

# %%
mined = toy.mine_all(spaces, run)
run.metrics(mined.table)
figures.show(
    figures.recovery_by_miner(mined.table),
    toy.recovery_title(mined),
    f"{run.p.n_seeds} models. Dots are seeds, bars 95 % intervals of the mean; grey: chance level with as many random "
    "directions as the miner returned (mean and 95 % point). Choose the metric at the top.",
)

# %%
figures.show(
    figures.mined_versus_true(mined.cosines),
    toy.cosine_title(mined),
    "Signed cosine of each true direction (rows) with its match (diagonal) and all others, seed 0; choose the miner.",
)

# %% [markdown]
# ## Which scores see anything?
#
# The first implementation of this idea ranked subsets by other scores. Each stands beside its value where there is nothing to
# see: permuted labels (which feature is strongest), a Gaussian of the same covariance, or columns shuffled one by one. *Spread*
# is the standard deviation over subsets by the mean: a score that is the same for all subsets selects nothing, and one that
# noise reaches too selects noise.

# %%
scores = toy.seed_scores(spaces, run)
run.metrics(scores)
figures.show(
    figures.recovery_by_miner(scores),
    toy.seed_score_title(scores),
    f"Share of {toy.SCORED_SUBSETS} subsets that score beyond the 95 % point of their null; dots are {run.p.n_seeds} models; grey: "
    "the null held against itself, mean and 95 % point.",
)

# %%
toy.seed_score_table(scores)

# %% [markdown]
# ## When does it stop working?
#
# One thing at a time is made harder or smaller: more features in the same dimensions, more of them active at once, noise
# on the hidden states, other subset sizes, fewer subsets, fewer samples. Each point has its own trained models.

# %%
curve_table = curves.curves(run)
run.metrics(curve_table)
figures.show(
    figures.recovery_curves(curve_table[curve_table["metric"] == "recovery_rate"]),
    curves.title(curve_table),
    f"{run.p.curve_seeds} models a point; lines are means, bands run from the lowest to the highest model; grey: chance "
    "with as many random directions as the miner that returned most, mean to 95 % point. Choose what varies at the top.",
)

# %% [markdown]
# ## From noise to features
#
# The same search on data between pure noise and the toy model's hidden states: the slider mixes them. Where nothing is
# there the calibrated miner should return nothing.

# %%
frames = toy.from_noise(spaces[0], run)
figures.show(
    figures.mined_slider(frames),
    toy.noise_title(frames),
    "True and mined directions projected on the first two principal axes of the true ones, seed 0. The share of signal "
    "is the slider; arrows shorter than 1 point out of the plane.",
    hero=True,
)

# %% [markdown]
# In JupyterLab the cell below opens an explorer: choose how often features are active and which miner looks at the hidden
# plane. On a page its controls are absent and the figure stands still.

# %%
explore.toy_plane(plane, run)

# %% [markdown]
# ## Go or no go
#
# The gate passes only if the calibrated miner beats chance in every model. Run with `control = "gaussian"` or
# `"permuted"` it must fail, and the tests see to it that it does.

# %%
run.note(seeds=list(range(run.p.n_seeds)))
run.gate(toy.checks(mined, run.p))
run.finish(toy.headline(mined))

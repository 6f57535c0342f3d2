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
# # 02 · Does a high separation score mean a feature?
#
# RkCNN was made for classification: it draws random subsets of coordinates, scores how well each separates the classes
# and trusts the best. That trust is tested here where labels are known: on toy models ("is feature j active?") and on
# the embedded language model, whose tokens carry their topic, number and quotation. Do the best-scoring subsets read
# labels off *new* rows better than random subsets, and how far are they from all dimensions together?

# %% tags=["parameters"]
profile: str = "gpt2"  # name of the parameter set; smoke and quick runs carry a banner
n_subsets: int = 600  # random subsets drawn (at least 3 x n_directions)
subset_size: int = None  # coordinates in a subset; None: round(sqrt(width))
score: str = "neighbours"  # neighbours, kurtosis, logcosh or skew
subsets: str = "coordinate"  # coordinate (rotated where too few) or rotated
n_directions: int = 200  # directions (02: subsets) kept at most
control: str = "none"  # none; gaussian: noise in place of activations; permuted: the truth shuffled
n_seeds: int = 10  # toy models, each with its own subsets
n_features: int = 60  # features of the toy model
n_hidden: int = 20  # its hidden dimensions
n_active: int = 3  # features active in each sample
toy_steps: int = 2000  # its training steps
n_samples: int = 20_000  # its hidden states
atlas_layer: int = 2  # block of the embedded language model; -1 is the last
atlas_hook: str = "resid_post"  # resid_pre, resid_post, mlp_out, mlp_post or attn_out
n_contexts: int = 300  # labelled contexts of 128 tokens
atlas_labels: list = ["topic", "number", "in_quotes", "in_brackets"]  # labels that are probed
n_probed: int = 20  # subsets of each group (top, random, bottom) that are probed
n_probed_null: int = 10  # the same under permuted labels; fewer: a wider 95 % point of chance
n_ensemble: int = 30  # best subsets that the RkCNN classifier combines
curve_sizes: list = [2, 4, 8, 16, 32, 64, 96]  # sizes of subsets compared with all dimensions
n_neighbours: int = 10  # of the kNN probe
n_permutations: int = 49  # permuted labels behind each chance level
device: str = None  # "cpu", "cuda" or None: the GPU where there is one
force: bool = False  # go on although an earlier gate failed
n_jobs: int = None  # processes at once; None: one a core, or one where there is a GPU

# %%
from rkcnn_lib import figures
from rkcnn_lib.runs.run import start_run
from rkcnn_lib.studies import neighbourhoods, probing

run = start_run("02_probe_validation", globals())

# %% [markdown]
# ## Do scores tell subsets apart?
#
# A score that is the same for all subsets selects nothing, however stable it is. Beside the scores stand those of the
# same subsets under permuted labels: if the two overlap, the score answers to chance.

# %%
scores = probing.separation_scores(run, probing.toy_tasks)
figures.show(
    figures.score_distribution(scores),
    probing.scores_title("Toy", scores),
    "Separation scores of all subsets, toy model of seed 0, one feature's activity as label; scored on half of the rows.",
)

# %%
scores = probing.separation_scores(run, probing.atlas_tasks)
figures.show(
    figures.score_distribution(scores),
    probing.scores_title("Atlas", scores),
    f"Separation scores of all subsets on the embedded language model, seed 0, {run.p.atlas_labels[0]} as label; labels "
    "permuted by document, so that what belongs together stays together.",
)

# %% [markdown]
# ## Toy model: winners against random, bottom and all dimensions
#
# Subsets are scored and probes fitted on one half of the documents and judged on the other. The chance level runs the
# whole pipeline again under permuted labels: scoring, selecting, fitting, judging. Were the winners no better than
# random subsets, or reached only by all dimensions, the score would be of no use.

# %%
toy_table = probing.study(run, probing.toy_tasks)
run.metrics(toy_table.assign(metric="balanced_accuracy"))
figures.show(
    figures.selectivity(probing.for_figure(toy_table)),
    "Toy. " + probing.title(toy_table),
    f"Balanced accuracy on new rows; dots are features and seeds, {run.p.n_seeds} seeds; grey: chance under "
    "permuted labels, mean and 95 % point. Choose the probe at the top.",
)

# %% [markdown]
# ## Embedded language model: the same on known labels

# %%
atlas_table = probing.study(run, probing.atlas_tasks)
run.metrics(atlas_table.assign(metric="balanced_accuracy"))
figures.show(
    figures.selectivity(probing.for_figure(atlas_table, by_label=True)),
    "Atlas. " + probing.title(atlas_table),
    f"Dots are {run.p.n_seeds} corpora; choose label and probe at the top. The more classes a label has, the lower its chance level; "
    "the title averages over labels and probes.",
)

# %%
label_table = probing.by_label(atlas_table)
label_table

# %% [markdown]
# ## The score that 04 selects by
#
# 04, 05 and 06 have no labels. There a subset's k nearest rows to a random anchor are its class, and the score is how well
# they separate in the coordinates that the subset did not look at (with `score` a contrast: the rows farthest along the
# subset's principal direction). It never sees what the rows have in common: on toy models the strongest active feature, on
# the language model the token. Do the rows of the best subsets share that more often than those of random subsets, and than
# under permuted types?

# %%
toy_shared = neighbourhoods.study(run, probing.toy_tasks)
run.metrics(neighbourhoods.in_use(toy_shared).assign(metric="purity"))
figures.show(
    figures.selectivity(
        neighbourhoods.in_use(toy_shared),
        measured="rows that share their anchor's strongest feature (share)",
    ), "Toy. " + neighbourhoods.title(toy_shared),
    f"The best, random and worst {run.p.n_directions} of {run.p.n_subsets} subsets by the separation of their {run.p.n_neighbours} "
    f"nearest rows; dots are {run.p.n_seeds} seeds; grey: permuted types, mean and 95 % point.",
)  # fmt: skip

# %%
atlas_shared = neighbourhoods.study(run, probing.atlas_tasks)
run.metrics(neighbourhoods.in_use(atlas_shared).assign(metric="purity"))
figures.show(
    figures.selectivity(
        neighbourhoods.in_use(atlas_shared),
        measured="rows that share their anchor's token (share)",
    ), "Atlas. " + neighbourhoods.title(atlas_shared),
    f"The same on the embedded language model; dots are {run.p.n_seeds} corpora. A subset that finds one token again and again has "
    "found something of the model's, if nothing deep.",
)  # fmt: skip

# %% [markdown]
# Do winning subsets point at a feature? In the toy model the direction of an anchor's strongest feature is known. A subset's
# own direction, the mean of its rows before any lift, is drawn at its angle to it.

# %%
winners = neighbourhoods.winners(run, probing.toy_tasks)
run.metrics(winners.assign(metric="cosine_with_feature"))
figures.show(
    figures.mined_slider(neighbourhoods.angles(winners)),
    neighbourhoods.winners_title(winners),
    "Toy model of seed 0. The thick arrow is the feature's direction, the others are subsets' directions, each turned so that "
    "the angle to its own feature is kept; the slider goes from the worst subsets by score to random ones to the winners.",
)

# %% [markdown]
# ## How small may a subset be?
#
# Were types to be had from nearly all dimensions only, a score of subsets would be beside the point: the gate fails unless
# the best subsets of at most half of the dimensions share 90 % of what rows near each other in all dimensions do.

# %%
toy_curve = neighbourhoods.purity_curve(toy_shared)
run.metrics(toy_curve.assign(metric="purity_by_size", world="toy"))
what = "of what neighbours in all of them share above chance"
figures.show(
    figures.recovery_curve(toy_curve, neighbourhoods.SIZE),
    "Toy. " + neighbourhoods.curve_title(toy_curve, what),
    f"Share of rows with their anchor's strongest feature; bands run over {run.p.n_seeds} seeds; grey: permuted types. At the "
    "right end: the rows nearest to random anchors in all dimensions.",
)

# %%
atlas_curve = neighbourhoods.purity_curve(atlas_shared)
run.metrics(atlas_curve.assign(metric="purity_by_size", world="atlas"))
figures.show(
    figures.recovery_curve(atlas_curve, neighbourhoods.SIZE),
    "Atlas. " + neighbourhoods.curve_title(atlas_curve, what),
    f"Share of rows with their anchor's token; bands run over {run.p.n_seeds} corpora; grey: permuted types.",
)

# %% [markdown]
# With labels the same question is asked of held-out accuracy. Top subsets are chosen on one half of the documents at every
# size. No gate rests on it: no later notebook selects by labels.

# %%
toy_sizes = probing.study(run, probing.toy_tasks, "probing_sizes")
run.metrics(toy_sizes.assign(metric="balanced_accuracy_by_size", world="toy"))
toy_labelled = neighbourhoods.labelled_curve(toy_sizes, toy_table)
figures.show(
    figures.recovery_curve(toy_labelled, neighbourhoods.SIZE),
    "Toy. " + neighbourhoods.curve_title(toy_labelled),
    f"Balanced accuracy of a logistic probe on new rows, mean over labels; bands run over {run.p.n_seeds} seeds; grey: "
    "permuted labels.",
)

# %%
atlas_sizes = probing.study(run, probing.atlas_tasks, "probing_sizes")
run.metrics(atlas_sizes.assign(metric="balanced_accuracy_by_size", world="atlas"))
atlas_labelled = neighbourhoods.labelled_curve(atlas_sizes, atlas_table)
figures.show(
    figures.recovery_curve(atlas_labelled, neighbourhoods.SIZE),
    "Atlas. " + neighbourhoods.curve_title(atlas_labelled),
    f"Balanced accuracy of a logistic probe on new rows, mean over labels; bands run over {run.p.n_seeds} seeds; grey: "
    "permuted labels.",
)

# %% [markdown]
# ## Does the probe read, or remember?
#
# In a control task every token (in the toy model: every strongest feature) bears a random label of its own. A probe that
# does nearly as well on it has memorised; the difference of the two accuracies is its *selectivity*.

# %%
controls = probing.study(run, probing.atlas_tasks, "probing_controls")
run.metrics(controls.assign(metric="selectivity", value=controls["selectivity"], world="atlas"))
controls.drop(columns="seed").groupby(["label", "group", "probe"]).mean().round(3).reset_index()

# %% [markdown]
# ## Gate

# %%
run.note(seeds=list(range(run.p.n_seeds)))
run.gate(
    [
        *probing.checks(toy_table, "toy"),
        *neighbourhoods.checks(toy_shared, "toy"),
        *probing.checks(atlas_table, "atlas"),
        *neighbourhoods.checks(atlas_shared, "atlas"),
    ]
)
run.finish(probing.headline(toy_table, atlas_table) + " " + neighbourhoods.headline(atlas_shared))

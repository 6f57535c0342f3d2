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
# # 05 · Does it hold across layers?
#
# One layer can flatter a method. This notebook runs the comparison of 04 at every layer, one process a cell, and asks
# whether the sign and size of the difference hold, with intervals corrected for looking at many layers.

# %% tags=["parameters"]
profile: str = "gpt2"  # name of the parameter set; smoke and quick runs carry a banner
model: str = "gpt2"  # hub name, folder, "atlas", "gemma", "modadd"; 04, sweeps: "toy", "planted" ("_1024")
revision: str = None  # revision of a hub model; None: its main branch
layers: list = None  # blocks to read, -1 is the last; None: all
hook: str = "mlp_out"  # resid_pre, resid_post, mlp_out, mlp_post or attn_out
text: str = None  # None: the hub's list (atlas: its own); a .txt, .jsonl or .parquet file; "atlas"
n_tokens: int = 1_000_000  # tokens to capture, 10 % of documents held out
context_size: int = 128  # tokens in a context
n_subsets: int = None  # random subsets drawn in each round; None: 36 for each latent in all
subset_size: int = None  # coordinates in a subset; None: round(sqrt(width))
score: str = "neighbours"  # neighbours, kurtosis, logcosh or skew
subsets: str = "coordinate"  # coordinate (rotated where too few) or rotated
rule: str = "separation"  # separation, votes or cover
n_stages: int = 12  # rounds, each on what those before it leave unexplained
n_neighbours: int = 16  # rows of a subset's pseudo-class
n_shifts: int = 3  # mean shifts that lift it
n_refinements: int = 3  # passes of sparse coding that end rkcnn and the refined rivals alike
arms: list = ["random", "covariance", "kmeans_refined", "rkcnn", "rkcnn_unscored"]  # starts
variants: list = []  # none, or those of 04's default
n_seeds: int = 5  # below 5 every verdict is undecided
architecture: str = "topk"  # topk, batchtopk or relu
expansion: float = 4.0  # latents: expansion x width
k: int = 32  # active latents a token; relu: searched for by its penalty
l1: float = None  # relu only: this penalty, instead of the search for k active latents
aux_k: int = 256  # dead latents in the auxiliary loss, for all arms or (None, and relu) for none
encoder: str = None  # tied to the decoder or fitted to its codes; None: each arm's better, searched with its rate
steps: int = 4000  # training steps
batch_size: int = 4096  # tokens a step
lr: float = 0.0004  # learning rate
lr_search: list = []  # rates of which each arm gets its best, on a seed of its own; []: lr
cosine_decay: bool = False  # the rate falls along half a cosine, instead of linearly over the last fifth
twin_weight: float = 0.0  # penalty on decoder rows far from those of a twin with a seed of its own; 0: none
budgets: list = []  # shares of the steps that arms are trained for too
mining_rows: int = 50_000  # rows each seed mines, from its own documents
heldout_rows: int = 50_000  # held-out rows for explained variance and dead latents
splice_contexts: int = 32  # held-out contexts, spread over all, for the loss with SAEs; 0: none
delta_dead: float = 0.01  # margin: share of dead latents
delta_ev: float = 0.005  # margin: explained variance
delta_ce: float = 0.01  # margin: cross-entropy, nats a token
delta_mcc: float = 0.02  # margin: agreement of seeds (PW-MCC)
delta_tokens: float = 0.1  # margin: tokens to random's quality, as a share of the training
delta_recovery: float = 0.02  # margin: share of true directions recovered
more_hooks: list = []  # further hooks that are compared, for the heat map; only hook is judged
sweep: str = None  # folder of `rkcnn sweep FILE --out FOLDER`: sensitivity curves; None: no curves
device: str = None  # "cpu", "cuda" or None: the GPU where there is one
force: bool = False  # go on although an earlier gate failed
n_jobs: int = None  # processes at once; None: one a core, or one where there is a GPU

# %%
from rkcnn_lib import figures
from rkcnn_lib.runs.published import read_tables
from rkcnn_lib.runs.run import start_run
from rkcnn_lib.runs.units import load_unit
from rkcnn_lib.studies import layers as layer_study
from rkcnn_lib.studies.sae_panels import loss_over_documents
from rkcnn_lib.studies.verdicts import verdict_title, widened

run = start_run("05_multilayer", globals())

# %% [markdown]
# ## All layers in one pass of the model
#
# The caches of all layers come from one run over the text. Beside each layer stands its anisotropy
# `gamma = ||mean|| / ||standard deviation||` and how few dimensions carry half of its variance: if an advantage follows
# these, it is about the geometry of the activations, not about features.

# %%
by_hook = layer_study.open_stores(run)
stores = by_hook[run.p.hook]
profile_table = layer_study.layer_profile(stores)
run.metrics(profile_table.melt(id_vars="layer", var_name="metric", value_name="value"))
profile_table

# %% [markdown]
# ## The comparison at every layer
#
# A cell is an arm, a seed and a layer; each is mined, trained and measured in a process of its own and written to disk
# whole. Cells that are there are read.

# %%
metrics, supply, chance, folders = layer_study.compare_layers(stores, run)
run.note(
    seeds=list(range(run.p.n_seeds)),
    data={f"{hook} {layer}": store.manifest for hook, of_hook in by_hook.items() for layer, store in of_hook.items()},
)
run.metrics(metrics)
supply.groupby(["layer", "arm"])[["candidates_a_place", "supply", "wanted", "seconds"]].mean().round(1).astype(
    {"wanted": int}
)

# %% [markdown]
# Seeds agree if their dictionaries hold the same directions, matched one-to-one (PW-MCC on whitened rows, from three seeds
# on). Two dictionaries of random directions agree too: at the level named beside it.

# %%
chance

# %%
further = layer_study.compare_further(by_hook, run)
of_all_hooks = {run.p.hook: metrics} | further
shown = layer_study.shown_metrics(of_all_hooks)
figures.show(
    figures.layer_heatmap(shown),
    layer_study.heatmap_title(metrics),
    f"Mean over {run.p.n_seeds} seeds on held-out documents; choose the metric{' and the hook' if further else ''} at the top. "
    f"The title and all that follows are of {run.p.hook}.",
)

# %% [markdown]
# ## Where is the difference?
#
# The declared contrasts at every layer. Intervals are Holm-adjusted over all layers and contrasts of a metric, so
# that one layer in many does not look like a finding.

# %%
differences = layer_study.differences(metrics, run.p)
figures.show(
    figures.layer_differences(differences),
    layer_study.difference_title(differences),
    f"rkcnn minus each baseline, {run.p.n_seeds} seeds, positive is better; 95 % paired-t intervals, Holm-adjusted over layers and "
    "contrasts; grey: the margin.",
)

# %% [markdown]
# ## Does it follow the geometry?
#
# The same differences against each layer's anisotropy. A slope would say that the advantage, or its absence, is about
# how far the mean lies from the origin.

# %%
along_gamma = differences.merge(profile_table[["layer", "gamma"]], on="layer")
figures.show(
    figures.layer_differences(along_gamma, x="gamma"),
    layer_study.gamma_title(along_gamma),
    f"One dot a layer and contrast, {run.p.n_seeds} seeds, with the intervals of the figure above.",
)

# %% [markdown]
# ## A sign test over layers
#
# At how many layers is the difference in favour (chance: at half of them)? `p_layers` is the textbook sign test, which
# takes layers for independent. They are not: they share seeds, text and model. `p_seeds` counts cells, a layer of a seed,
# and lets a coin turn a seed round at all its layers together; with five seeds it cannot go below 0.0625.

# %%
signs = layer_study.sign_over_layers(metrics, run.p)
signs

# %% [markdown]
# ## Best layer, honestly
#
# The best of several layers is larger than zero even if nothing is there. Beside it stands what the best of as many
# layers gives when the sign of every seed's difference is drawn by a coin (`p`: the share of coins that do as well).

# %%
best = layer_study.best_of_layers(metrics, run.p)
run.metrics(best.assign(arm="rkcnn"))
best

# %% [markdown]
# ## Hyper-parameters
#
# One setting can flatter a method too. A sweep (`rkcnn sweep FILE --out FOLDER`, then `sweep: FOLDER` here) runs the
# comparison over a grid of them: the curves show each arm along one hyper-parameter, averaged over the others, and the
# best of all settings and layers stands beside the best that coins give.

# %%
tables = read_tables(run.p.sweep) if run.p.sweep else None
if tables:
    curves = layer_study.sensitivity(tables)
    figures.show(
        figures.sensitivity(curves),
        layer_study.sensitivity_title(curves),
        f"{tables.n_settings} settings, {tables.n_failed} cells failed; 95 % intervals over seeds; "
        "choose hyper-parameter and metric at the top.",
    )

# %%
layer_study.best_of_sweep(tables, run.p) if tables else "no sweep was given"

# %% [markdown]
# How such a table misleads is shown by the first implementation's own sweep: 54 settings of one seed each, told by its
# best one, which saved 11.9 % of dead latents. Its published counts say more. The mean over settings is not to be told
# from zero, the worst setting *costs* more than the best saves, and if a coin decides in each setting which of the two
# counts is the mined one, the best of 54 is as good three times in four.

# %%
layer_study.published_sweep().T.rename(columns={0: "dead latents saved, share"}).round(3)

# %% [markdown]
# ## The verdict over layers
#
# The summary averages each seed's difference over layers and judges these by the rule of 04: layers share seeds, text
# and model, so they are not counted as independent. A sweep is judged in the same way, over all its settings: it is not
# searched for the one in which the hypothesis holds. All seeds are judged on the same text, so the loss has an interval over
# seeds and documents too, and its verdict goes by the wider one:

# %%
units = ((cell, load_unit(folder)) for cell, folder in folders.items())
loss = loss_over_documents(units, next(iter(stores.values())), run.p)  # all layers have the same text
loss.round(4)

# %%
over_layers = widened(layer_study.verdicts(metrics, run.p), "delta_ce", loss)
over_settings = layer_study.verdicts(tables.metrics, run.p, f", mean over {tables.n_settings} settings") if tables else []
verdicts = run.verdicts(over_layers + over_settings)
figures.show(
    figures.paired_differences(verdicts.head(len(over_layers))),
    verdict_title(verdicts),
    f"Differences averaged over layers, one value for each of {run.p.n_seeds} seeds; Holm-adjusted 95 % paired-t intervals (loss: as wide as that over seeds and documents); strip: the margin.",
)
verdicts

# %%
run.gate(layer_study.checks(of_all_hooks, len(stores), run.p))
run.finish(layer_study.headline(verdicts, differences, run))

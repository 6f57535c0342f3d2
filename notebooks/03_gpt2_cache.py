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
# # 03 · What is being measured?
#
# Everything after this page is a statement about one stack of activations: which model, which layer, which
# text. This notebook makes that stack once, on disk, and looks at it: does the model predict this text, are the
# activations the ones they are named after, how large are they, how few dimensions carry most of their variance?
# The last point decides whether arms of a comparison can be compared at all: a direction found along an outlier
# dimension wins every contest and means little.

# %% tags=["parameters"]
profile: str = "gpt2"  # name of the parameter set; smoke and quick runs carry a banner
model: str = "gpt2"  # hub name, folder, "atlas", "gemma", "modadd"; 04, sweeps: "toy", "planted" ("_1024")
revision: str = None  # revision of a hub model; None: its main branch
layer: int = 6  # block to read; -1 is the last
hook: str = "mlp_out"  # resid_pre, resid_post, mlp_out, mlp_post or attn_out
text: str = None  # None: the hub's list (atlas: its own); a .txt, .jsonl or .parquet file; "atlas"
n_tokens: int = 2_000_000  # tokens to capture, 10 % of documents held out
context_size: int = 128  # tokens in a context
n_statistics: int = 100_000  # rows used for spectra and kurtosis
device: str = None  # "cpu", "cuda" or None: the GPU where there is one
force: bool = False  # go on although an earlier gate failed

# %%
from rkcnn_lib import figures
from rkcnn_lib.runs.run import start_run
from rkcnn_lib.studies import activations

run = start_run("03_gpt2_cache", globals())

# %% [markdown]
# ## The cache
#
# The model runs once over the text, up to the layer asked for, and every token's activation goes to disk in token
# order. Documents are kept whole: a hash of each decides whether it is held out, and contexts never mix held-out
# documents with others. Position 0 of each context and special tokens are stored but never used, since their
# activations are of another kind. If the run is interrupted it goes on at the last whole shard; if this very cache
# is there already, it is opened and checked.

# %%
store = activations.open_store(run)
activations.describe(store)

# %% [markdown]
# ## Do the checks hold?
#
# Each check could fail: the width must be the one that the model's config gives this hook, the shards must have the
# checksums they were written with, the same tokens run again must give the stored rows, and the model must predict
# this text far better than token frequencies do (or the text is not in its language).

# %%
checks = activations.checks(store, run)
run.gate(checks)

# %% [markdown]
# ## How large are activations, and where?
#
# Norms by position in the context. A first position tens of times larger than the rest (an *attention sink*) would
# dominate every average; that is why it is left out of all that follows.

# %%
norms = activations.norms_by_position(store, p=run.p)
figures.show(
    figures.norms_by_position(norms),
    activations.norm_title(norms),
    "Median and 10-90 % range of the Euclidean norm at each position of a context, all stored contexts. "
    "Position 0 is drawn but not used anywhere else.",
)

# %% [markdown]
# ## Do a few dimensions carry most of the variance?
#
# Explained variance, the score by which SAEs are usually compared, can be earned on a handful of outlier
# dimensions. The report therefore shows it twice: as it is, and with each dimension standardised.

# %%
statistics = activations.dimension_statistics(store, p=run.p)
figures.show(
    figures.variance_by_dimension(statistics.table),
    statistics.title,
    "Each dimension's share of the total variance, largest first, with its excess kurtosis on hover (Gaussian: 0).",
)

# %%
figures.show(
    figures.spectrum(statistics.spectra),
    statistics.spectrum_title,
    "Eigenvalues of the covariance. A flat spectrum would mean that all directions matter alike; the Gaussian "
    "surrogate has the same covariance and so the same spectrum up to sampling.",
)

# %% [markdown]
# ## Is there anything beyond the covariance?
#
# Mining looks for directions along which activations are *not* Gaussian: mostly near zero, now and then far out. If
# the excess kurtosis along random directions is no larger than in a surrogate with the same covariance and the same
# norms, there is nothing to mine.

# %%
kurtosis = activations.kurtosis_of_random_directions(store, p=run.p)
figures.show(
    figures.score_distribution(kurtosis.scores).update_xaxes(title="excess kurtosis along a direction"),
    kurtosis.title,
    "Excess kurtosis of the projection on 500 random unit directions: the activations beside a Gaussian surrogate "
    "(same covariance) and an elliptical one (same norms too).",
)

# %%
run.metrics(activations.tidy(store, statistics, kurtosis))
run.finish(activations.headline(statistics, kurtosis))

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
# # 06 · Does the model use what the directions point at?
#
# A subset that separates the data need not be a causal feature. Here subspaces are put to the test inside the model:
# exchange one between two prompts, or keep it alone and replace everything else. If the answer follows, the model
# uses it; if a subspace tells the answers apart and nothing follows, it only predicts. Whether mined directions do
# more than random ones, and how far they stay behind what gradient descent finds with labels, is the question.

# %% tags=["parameters"]
profile: str = "gpt2"  # name of the parameter set; smoke and quick runs carry a banner
model: str = "gpt2"  # hub name, folder, "atlas", "gemma", "modadd"; 04, sweeps: "toy", "planted" ("_1024")
revision: str = None  # revision of a hub model; None: its main branch
layer: int = 9  # block to read; -1 is the last
hook: str = "resid_post"  # resid_pre, resid_post, mlp_out, mlp_post or attn_out
text: str = None  # None: the hub's list (atlas: its own); a .txt, .jsonl or .parquet file; "atlas"
n_tokens: int = 500_000  # tokens to capture, 10 % of documents held out
context_size: int = 128  # tokens in a context
n_subsets: int = 2400  # random subsets drawn (at least 3 x n_directions)
subset_size: int = None  # coordinates in a subset; None: round(sqrt(width))
score: str = "neighbours"  # neighbours, kurtosis, logcosh or skew
subsets: str = "coordinate"  # coordinate (rotated where too few) or rotated
rule: str = "separation"  # separation, votes or cover
n_stages: int = 12  # rounds, each on what those before it leave unexplained
n_neighbours: int = 16  # rows of a subset's pseudo-class
n_shifts: int = 3  # mean shifts that lift it
n_refinements: int = 3  # passes of sparse coding that end rkcnn and the refined rivals alike
n_directions: int = 800  # directions (02: subsets) kept at most
mining_rows: int = 50_000  # rows each seed mines, from its own documents
n_seeds: int = 5  # seeds that mine; below 5 the verdict over seeds is undecided
positions: str = "both"  # where: "entity" (its last token), "last" (where the answer is read) or "both"
relation: str = "capital"  # which facts, "agreement", "ioi" or (modadd) "sum"; an unknown one is told them
isolated: str = None  # a second relation of the same entities, which should not change, or None
ranks: list = [2, 4, 8, 16, 32]  # dimensions of the subspaces; the middle one is judged
n_pairs: int = 64  # prompt pairs on which subspaces are judged; four times as many train the ceiling
sae_steps: int = 4000  # steps of 1024 rows that each seed's SAE is trained; 0: no SAE
sae_expansion: float = 4.0  # latents per dimension
sae_k: int = 32  # latents active a token
das_steps: int = 200  # gradient steps of the supervised ceiling
das_layers: list = None  # further layers at which the ceiling is learnt; None: all
delta_share: float = 0.1  # margin: share of the whole activation's effect
delta_predict: float = 0.1  # margin: accuracy above chance (0.5) from which a subspace counts as predictive
device: str = None  # "cpu", "cuda" or None: the GPU where there is one
force: bool = False  # go on although an earlier gate failed

# %%
from rkcnn_lib import figures
from rkcnn_lib.pages import explore
from rkcnn_lib.runs.run import start_run
from rkcnn_lib.studies import activations, causal, causal_subspaces, causal_views, verdicts
from rkcnn_lib.worlds import load_model

run = start_run("06_causal_checks", globals())

# %% [markdown]
# ## What does the model know?
#
# Three sets of prompts that share none. *Screening* prompts tell which entities the model knows; only those are used.
# On *selection* prompts subspaces are chosen and learnt. On *evaluation* prompts they are judged: in other sentences
# (for atlas: combinations of fact and sentence that its training text never held) and, where several entities share an
# answer, about other entities. Answers are one token each, or a class of single tokens (plural verbs).

# %%
lm = load_model(run.p.model, revision=run.p.revision, device=run.device)
prompts = causal_subspaces.known_prompts(lm, run.p)
causal_views.describe(prompts)

# %% [markdown]
# ## Where is the answer carried?
#
# The whole activation of one token at one layer is exchanged for the donor prompt's. 0 leaves the difference between
# the right answer and the donor's as it was, 1 makes them level, 2 turns the difference round.

# %%
places = causal_views.effect_by_place(lm, run.p, prompts)
run.metrics(places)
figures.show(
    figures.layer_heatmap(places),
    causal_views.place_title(places, run.p),
    f"Mean over pairs of one sentence; hook {run.p.hook}. The menu shows the share of pairs that answer as the "
    "donor. This is the most that a subspace of that activation could do alone.",
)

# %% [markdown]
# ## Exchange it, or keep it
#
# At the exchanged positions activations are split into the part inside the subspace A and the rest. *Ablate*: A alone
# comes from the donor (an interchange). *Keep*: all but A does. All subspaces have equal rank. Beside the mined one
# stand random ones (of equal rank, and of equal rank and variance), principal components, k-means centres and
# datapoints, the same directions chosen by shuffled labels, an SAE's latents, the class means, and the supervised
# ceiling: a subspace learnt by gradient to do just this, on other prompts.

# %%
store = activations.open_store(run)
measured = causal.measure_subspaces(lm, store, run.p, prompts, run.device)
run.note(seeds=list(range(run.p.n_seeds)))
run.metrics(measured.table)
figures.show(
    figures.causal_effects(causal.at_rank(measured.table, run.p), causal.DRAWN),
    causal.effects_title(measured.table, run.p),
    f"Rank {causal.judged_rank(run.p)}, {len(prompts.judged.drawn)} held-out pairs. Intervals at 95 %: over "
    f"{run.p.n_seeds} seeds where a subspace has several, over entities where it has one. Lines: the clean run and the "
    "full resample ablation. The menu has further subspaces too.",
)
causal_views.legend(measured)

# %% [markdown]
# Taking a subspace away is a weaker test than exchanging it: zero and mean replacement may push the model into states it
# never meets. The same subspaces, ablated all three ways:

# %%
replaced = causal_views.by_replacement(lm, run.p, measured, prompts)
run.metrics(replaced)
replaced.pivot(index=["subspace", "replacement"], columns="metric", values="value").round(3)

# %% [markdown]
# ## How many directions does it take?
#
# Effect against rank. A subspace that must be nearly as large as the whole space explains nothing. The menu goes from
# interchange accuracy to the share of the logit difference that a kept subspace recovers and to the fractional
# decrease that an exchanged one causes.

# %%
share = causal.shares(measured.table)
run.metrics(share)
run.metrics(causal.scrubbed(measured))
curve = causal.minimal_size(measured.table, share)
figures.show(
    figures.recovery_curve(curve, "rank", causal.DRAWN),
    causal.curve_title(measured.table, run.p),
    f"Mean and range over {run.p.n_seeds} seeds, {len(prompts.judged.drawn)} held-out pairs. Grey: uniformly random subspaces of the same rank, from their mean to the best seed. Further subspaces: a click in the legend.",
)

# %% [markdown]
# ## Is the ceiling a ceiling at every layer?
#
# The supervised subspace, learnt anew at each layer on training pairs and judged on the held-out ones.

# %%
layers = causal_views.ceiling_by_layer(lm, run.p, measured, prompts)
run.metrics(layers)
figures.show(
    figures.causal_by_layer(layers),
    causal_views.layer_title(layers, run.p),
    f"Interchange accuracy on {len(prompts.judged.drawn)} held-out pairs, 95 % intervals over entities; the line is the exchange of the whole activation.",
)

# %% [markdown]
# ## Does it leave the rest alone?
#
# A feature of its own should move its answer and no other. *Cause*: share of questions about `relation` that get the
# donor's answer. *Isolate*: share of questions about `isolated`, asked of entities that differ in it, whose answer
# stays. Exchanging everything and exchanging nothing both get a mean of 0.5.

# %%
if run.p.isolated:
    other = causal_subspaces.known_prompts(lm, run.p, like=prompts)
    isolation = causal_views.isolation(lm, run.p, measured, prompts, other)
    run.metrics(isolation)
    figures.show(
        figures.causal_effects(
            causal.over_seeds(isolation, ["subspace", "intervention", "metric"]),
        ),
        causal_views.isolation_title(isolation),
        f"Rank {causal.judged_rank(run.p)}; {run.p.relation} should move, {run.p.isolated} should stay. "
        "das_isolating was learnt with both aims.",
    )

# %% [markdown]
# ## An illusion to guard against
#
# In an MLP's hidden layer most directions are not read by the output weight. A subspace half outside what is read may
# still show an effect: its unread half varies with the answer and switches on the read half, which otherwise lies
# still. So the ceiling is learnt in the hidden layer that matters most and exchanged as it is, then only the part that
# the weight can read. With `hook = mlp_post` all verdicts below rest on that part.

# %%
illusion = causal_views.rowspace_effects(lm, run.p, measured, prompts)
run.metrics(illusion)
illusion.pivot(index=["layer", "part"], columns="metric", values="value").round(3)

# %% [markdown]
# ## One prompt at a time
#
# Point at a token: what exchanging this token alone, at the layer that is studied, does to the answer. Below each
# prompt, what the model says once a subspace is exchanged.

# %%
causal_views.show_cards(lm, run.p, measured, prompts, places)

# %% [markdown]
# In JupyterLab the cell below takes prompts of your own: what is said next as the model stands, with all but the subspace
# exchanged for the donor's (*keep*), with the subspace exchanged (*ablate*), and with what it holds of the difference
# between both prompts added at every token but the first (*steer*). On a page its controls are absent and the figure shows
# the first pair.

# %%
asking = explore.prompts(explore.PromptBox(lm, run.p, measured, prompts))

# %% [markdown]
# Steering: the difference of the mean activations of two answers, as far as it lies in the subspace, is added at every
# token but the first.

# %%
causal_views.steering_samples(lm, run.p, measured, prompts)

# %% [markdown]
# ## The verdict
#
# On each subspace, at the middle rank, declared with the parameters. *Causal*: its effect exceeds that of the strongest
# random control by more than the margin. *Predictive only*: its effect stays below the margin, although the coordinates
# of A tell the answer from the donor's on held-out prompts. *Inconclusive*: anything else, so also a subspace that moves
# answers, but no more than its variance gives a random one. Intervals run over entities, at Bonferroni's level for the
# number of subspaces.

# %%
judged = causal.verdict_table(measured, run.p, prompts)
run.metrics(judged.melt(id_vars=["subspace", "verdict"], var_name="metric", value_name="value"))
figures.show(
    figures.paired_differences(causal.verdict_rows(judged, run.p)),
    causal.verdicts_title(judged),
    "Share of the whole activation's effect, above the strongest random control; Bonferroni-adjusted 95 % intervals "
    "over entities; the strip is the margin.",
)
judged.round(3)

# %% [markdown]
# On the question of the report: does the mined subspace keep more of the answer than random subspaces of its rank, random
# ones that also have its variance, and principal components? *Better*, *equivalent* or *worse* by its Holm-adjusted 95 %
# paired interval over seeds against the margin, else *undecided*.

# %%
table = run.verdicts(causal.judge_causal(share, causal.judged_rank(run.p), run.p.delta_share))
figures.show(
    figures.paired_differences(table),
    verdicts.verdict_title(table),
    f"Holm-adjusted 95 % paired-t intervals over {run.p.n_seeds} seeds; the strip is the margin.",
)
table

# %%
run.gate(causal.checks(prompts, measured, run.p))
run.finish(causal.headline(judged, measured, run))

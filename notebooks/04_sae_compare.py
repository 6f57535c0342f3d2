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
# # 04 · Do mined directions make better sparse autoencoders?
#
# The question of the report. SAEs are trained on the same activations in the same order and differ in one thing only: the
# directions that their latents start from. Four claims were declared beforehand, each judged on every measure below:
#
# * **H1** a mined start (`rkcnn`) beats a random one;
# * **H1c** it beats random directions with the activations' covariance (`covariance`): is mining needed at all?
# * **H2** the score helps: it beats the *same* search without one (`rkcnn_unscored`: same subsets, steps and compute);
# * **H3** random subsets beat k-means, equally refined (`kmeans_refined`).
#
# The other arms are context: `active_subspace`, the published start against dead latents (Wang et al. 2025); datapoints and
# plain k-means; `rkcnn_coordinate`, as the idea was first implemented.

# %% tags=["parameters"]
profile: str = "gpt2"  # name of the parameter set; smoke and quick runs carry a banner
model: str = "gpt2"  # hub name, folder, "atlas", "gemma", "modadd"; 04, sweeps: "toy", "planted" ("_1024")
revision: str = None  # revision of a hub model; None: its main branch
layer: int = 6  # block to read; -1 is the last
hook: str = "mlp_out"  # resid_pre, resid_post, mlp_out, mlp_post or attn_out
text: str = None  # None: the hub's list (atlas: its own); a .txt, .jsonl or .parquet file; "atlas"
n_tokens: int = 2_000_000  # tokens to capture, 10 % of documents held out
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
arms: list = ["random", "covariance", "active_subspace", "datapoint_refined", "kmeans", "kmeans_refined", "rkcnn_coordinate", "rkcnn", "rkcnn_unscored"]  # starts
variants: list = ["rkcnn_decoder_only", "random_frozen_decoder"]  # none, or those of 04's default
n_seeds: int = 5  # below 5 every verdict is undecided
architecture: str = "topk"  # topk, batchtopk or relu
expansion: float = 8.0  # latents: expansion x width
k: int = 32  # active latents a token; relu: searched for by its penalty
l1: float = None  # relu only: this penalty, instead of the search for k active latents
aux_k: int = 256  # dead latents in the auxiliary loss, for all arms or (None, and relu) for none
encoder: str = None  # tied to the decoder or fitted to its codes; None: each arm's better, searched with its rate
steps: int = 2300  # training steps
batch_size: int = 4096  # tokens a step
lr: float = 0.0004  # learning rate
lr_search: list = []  # rates of which each arm gets its best, on a seed of its own; []: lr
cosine_decay: bool = False  # the rate falls along half a cosine, instead of linearly over the last fifth
twin_weight: float = 0.0  # penalty on decoder rows far from those of a twin with a seed of its own; 0: none
budgets: list = [0.125, 0.25, 0.5]  # shares of the steps that arms are trained for too
mining_rows: int = 100_000  # rows each seed mines, from its own documents
heldout_rows: int = 100_000  # held-out rows for explained variance and dead latents
splice_contexts: int = 64  # held-out contexts, spread over all, for the loss with SAEs; 0: none
delta_dead: float = 0.01  # margin: share of dead latents
delta_ev: float = 0.005  # margin: explained variance
delta_ce: float = 0.01  # margin: cross-entropy, nats a token
delta_mcc: float = 0.02  # margin: agreement of seeds (PW-MCC)
delta_tokens: float = 0.1  # margin: tokens to random's quality, as a share of the training
delta_recovery: float = 0.02  # margin: share of true directions recovered
published: list = []  # SAEs in SAELens's format, judged too: folders, or "owner/repository:path"
front_k: list = [16, 64]  # further k of the compared arms: the front of L0; [] for none
other_architecture: str = "relu"  # whose seeds' agreement is shown beside, at equal L0; None: none
frozen_k: list = [8, 16, 32]  # atoms a token in the frozen-dictionary test
frozen_rows: int = 1500  # held-out rows of that test
n_cards: int = 600  # latents of an arm that get a feature card, chosen by firing rate
delta_l0: float = 1.0  # margin: active latents a token at equal explained variance
device: str = None  # "cpu", "cuda" or None: the GPU where there is one
force: bool = False  # go on although an earlier gate failed
n_jobs: int = None  # processes at once; None: one a core, or one where there is a GPU

# %%
from IPython.display import display

from rkcnn_lib import figures
from rkcnn_lib.pages import book, explore
from rkcnn_lib.runs.published import open_published
from rkcnn_lib.runs.run import start_run
from rkcnn_lib.studies import (
    activations,
    agreement,
    comparison,
    fourier,
    front,
    planes,
    sae_panels,
    truth,
    verdicts,
)

run = start_run("04_sae_compare", globals())

# %%
store = activations.open_store(run)
others = open_published(run.p, store.d_in)
activations.describe(store)

# %% [markdown]
# ## Was the treatment applied? The funnel
#
# For each seed every arm mines the same rows (documents of that seed's own, never trained on) and supplies as many
# directions as there are latents; what it cannot supply is filled with the same draws from the activations' covariance in
# all arms. Refinement, a few passes of sparse coding, is given to every data-driven arm that is judged, or it would be what
# is compared. All start with one scale chosen in closed form and the geometric median as bias, train on the same tokens in
# the same order, and are judged on the same held-out documents.

# %%
compared = comparison.compare(store, run.p, run.device)
run.note(seeds=list(range(run.p.n_seeds)), units=comparison.unit_list(compared))
run.metrics(compared.metrics)
run.metrics(compared.budgets.assign(metric="budget_" + compared.budgets["metric"]))
figures.show(
    figures.funnel(sae_panels.funnel(compared)),
    sae_panels.funnel_title(compared),
    f"Subsets drawn in all rounds, the distinct directions they led to (candidates), what was kept, started and lives after "
    f"training; means over {run.p.n_seeds} seeds. Below three candidates a place the score would select nothing, and the run "
    "is refused.",
)

# %% [markdown]
# The search for each arm's learning rate and encoder (tied to its directions, or fitted to the codes they give), the same for
# all, on a seed of its own:

# %%
rates = compared.rates.round(4).set_index(["arm", "encoder"])
rates if len(rates) else f"no search: rate {run.p.lr}, encoder {run.p.encoder}, for all arms"

# %% [markdown]
# ## Before training: how good are the directions themselves?
#
# Held-out activations are coded with each arm's directions by one and the same sparse coder (one-sided orthogonal matching
# pursuit). Nothing is learned, so nothing but the directions can differ. *As mined* is an arm before its refinement, *after
# training* its SAE's live decoder rows read by the same coder instead of their own encoder. It says how well directions reconstruct, not
# how true they are: refinement fits this very coder, and where the truth is known it may reconstruct less.

# %%
frozen = sae_panels.frozen_dictionaries(compared, store, run)
run.metrics(frozen.rename(columns={"k": "frozen_k"}).assign(metric="frozen_ev"))
figures.show(
    figures.arm_metrics(sae_panels.by_stage(frozen)),
    sae_panels.frozen_title(frozen),
    f"Explained variance with k directions a token, {run.p.frozen_rows} held-out rows, {run.p.n_seeds} seeds; the random arm is "
    "the chance level. Choose the stage at the top.",
)

# %% [markdown]
# ## Training: how far, and how soon?
#
# Every arm is also trained for shorter budgets, each a training of its own with its learning-rate decay: a point early in a
# long training is not a short training. How much random's explained variance still gains by the last doubling says whether
# these SAEs are finished.

# %%
figures.show(
    figures.training_curves(compared.budgets, x="tokens"),
    front.budget_title(compared.budgets),
    f"Held-out documents, mean and range over {run.p.n_seeds} seeds; choose the metric at the top.",
)

# %%
beside_live = front.against_live(compared.budgets)
figures.show(
    figures.training_curves(beside_live, x="live"),
    front.live_title(beside_live),
    f"A point a length of training, mean and range over {run.p.n_seeds} seeds: a start that explains as much with fewer live "
    "latents spends them better.",
)

# %%
ahead = front.advantage(compared)
figures.show(
    figures.training_curves(ahead, x="tokens"),
    front.advantage_title(ahead),
    f"rkcnn less each rival, seed by seed, positive is better; mean and range over {run.p.n_seeds} seeds. An advantage that "
    "shrinks with training was speed, not quality.",
)

# %%
needed_tokens = run.metrics(front.needed_tokens(compared))
needed_tokens.groupby("arm", sort=False).agg({"value": "mean", "mining": "mean", "bound": " ".join}).round(3)

# %% [markdown]
# Means over seeds: after what share of the tokens of a full training an arm explains what random explains at its end. It
# counts what mining took, as the tokens that training sees in that time. For each seed the bound says whether the arm got
# there between two budgets (=), before the smallest (<=) or not at all (>): beyond the budgets nothing is extrapolated, and
# a rival that does not get there enters no verdict on it.
#
# ## At the end of training
#
# Explained variance as it is and with every dimension standardised (one loud dimension can hold half of the raw one), latents
# that live, and what replacing the activations by their reconstruction does to the model's loss, on rows that SAEs are trained
# on: position 0 and special tokens stay as they are.

# %%
judged = comparison.judge_published(others, store, run)
run.metrics(judged)
other = agreement.other_architecture(store, run)
shown = sae_panels.shown_metrics(compared, judged, other, run)
figures.show(
    figures.arm_metrics(shown),
    sae_panels.metrics_title(compared.metrics),
    f"{run.p.n_seeds} seeds, held-out documents. Dots are seeds, bars 95 % t intervals of the mean over seeds; choose the metric "
    "at the top. L0 is fixed by k, or matched by the penalty, so it is a check here. Published SAEs, where there are any, have an "
    "L0 and training data of their own and enter no contrast.",
)

# %% [markdown]
# All seeds are judged on the same text, so the loss has an interval over seeds and documents too (jackknife over both): what
# it does not exclude, more seeds on the same text could not exclude either. Its verdict goes by the wider interval.

# %%
loss = sae_panels.loss_over_documents(compared.units.items(), store, run.p)
loss.round(4)

# %% [markdown]
# Latents that never fire on the held-out tokens, by where they started (the arm's own directions, or the fill) and when they
# fell silent, as shares of the latents of that origin; means over seeds. What is dead *at the start* was so before the first
# step.

# %%
sae_panels.dead_by_origin(compared)

# %%
densities = sae_panels.densities(compared)
figures.show(
    figures.density(densities),
    sae_panels.density_title(densities),
    f"Share of held-out tokens on which a latent is active, all {run.p.n_seeds} seeds, log axis; those that never fire have "
    "their own bar.",
)

# %% [markdown]
# ## How many active latents does it take?
#
# TopK fixes L0, so this needs a front: the judged arms at several k. An arm's *L0 at equal explained variance* is where its
# line (linear in log L0) crosses what the random arm of the same seed explains at this notebook's `k`.

# %%
front_table = front.front(compared, store, run)
needed = front.l0_at_equal_ev(front_table, run.p)
if run.p.front_k:
    run.metrics(front_table.assign(metric="front_" + front_table["metric"]))
    run.metrics(needed.drop(columns="cut"))
    figures.show(
        figures.quality_front(front_table),
        front.title(needed),
        f"Held-out documents; lines are means, bands the range over {run.p.n_seeds} seeds. Choose the metric at the top.",
    )

# %% [markdown]
# ## Do mined directions survive training?

# %%
moved = sae_panels.moved(compared)
figures.show(
    figures.cosine_histograms(moved),
    sae_panels.moved_title(moved),
    f"rkcnn, all {run.p.n_seeds} seeds: cosine of each latent with its own start; the slider goes through training. A latent that "
    "never fires does not move either: the map of latents below shows movement beside firing rate.",
)

# %% [markdown]
# ## Do seeds agree?
#
# Each seed has its own documents, subsets and order of tokens. PW-MCC is the mean cosine of optimally matched decoder
# rows over pairs of seeds, live latents only. It is judged on *whitened* rows: where activations fill few dimensions, any two
# dictionaries made of them agree. Chance is the same statistic on random dictionaries of the same size, for raw rows drawn
# with the activations' covariance. Agreement before training is shown as well: a shared start is not stability.

# %%
agreed = agreement.agreement(compared, store, run.p, other)
run.metrics(agreed.table)
if run.p.n_seeds > 1:
    figures.show(
        figures.arm_metrics(agreed.table),
        agreed.title,
        f"One dot a seed, {run.p.n_seeds} in all (its mean over the pairs it is in); grey: chance, directions as the activations lie; choose measure and moment at the top. Shared: "
        "encoder and decoder name the same partner, both at cosine 0.7. Span: overlap of the spaces of the busiest latents, an "
        "eighth of the width in number.",
    )
    display(agreed.summary)
    recurring = agreement.recurrence(compared, agreed, store, run)
    figures.show(
        figures.layer_heatmap(recurring.shares, "seed"),
        recurring.title,
        "Of a row's live latents, the share with a partner in a column's at a whitened cosine of 0.7 (random directions: none); "
        "choose the start at the top.",
    )
    display(recurring.traits.round(4))
else:
    print("One seed has no other to agree with: run with -p n_seeds 5 to see whether seeds find the same latents.")

# %% [markdown]
# ## What do single latents say?
#
# A card a latent of `rkcnn` and `random`, seed 0 (at most `n_cards` of each, at even quantiles of the firing rate): how
# often it fires and whether it died, how far it moved from its start, its nearest relatives in other seeds and among the
# mined directions, the tokens whose logits its decoder row raises and lowers through the unembedding alone, and held-out
# text where it fires. Because the largest activations flatter, contexts go down to the lowest tenth of its activations; the
# shade is the activation as a share of its largest, underlined the token that counts. On the page a click on a point opens
# its card, and a click on a bin of the histograms of cosines and firing rates above lists the latents in it.

# %%
cards = book.read_book(compared, store, run)
figures.show(
    figures.latent_map(cards.table),
    book.title(cards),
    "Seed 0, a point a latent that has a card: held-out firing rate against the cosine of its decoder row with its start. "
    "Latents that never fire stand in the strip on the left. A direction that training leaves alone stays at 1.",
)
book.show(cards)

# %% [markdown]
# In JupyterLab the cell below browses all latents of all arms and seeds: by number, or by a token of the held-out text.

# %%
browser = explore.latents(cards)

# %% [markdown]
# ## Against labels, where they are known
#
# On the embedded language model every token's topic, kind, number and so on are known. How well do single latents tell them
# (latents chosen on one stream of documents, judged on another)? *Detection* gives every live latent the label that suits it
# best; *splitting* counts the latents that a kind of entity (landmark, city, country, person) needs; *absorbed* is the share
# of its tokens on which none of these fires and another latent speaks for it (Chanin et al. 2024). Shown, not judged.

# %%
told = truth.labels(compared, store, run)
if len(told):
    run.metrics(told)
    figures.show(
        figures.arm_metrics(told),
        truth.labels_title(told),
        f"{run.p.n_seeds} seeds; grey: chance, labels permuted (absorbed: latents shuffled). Choose the measure at the top.",
    )
else:
    print(f"{run.p.model}: no labels are known here. Run with -p model atlas to see them.")

# %% [markdown]
# ## Against the truth, where it is known

# %%
found = truth.recovery(compared, store)
if found is not None:
    run.metrics(found)
    figures.show(
        figures.recovery_by_miner(found.rename(columns={"arm": "miner"})),
        truth.recovery_title(found),
        f"Decoders of {run.p.n_seeds} seeds against the true directions, one-to-one and signed; rare: of the three tenths that fire "
        "least; untrained: before the first step; grey: chance with as many random directions.",
    )
    display(truth.recovery_by_rate(compared, store))
else:
    print(f"{run.p.model}: no true directions are known here. Run with -p model planted (or toy) to see them.")

# %% [markdown]
# With `-p model toy` also the smallest world: 5 features in a plane, read back by 5 latents of which one is active, for 20
# toy models and every start. Do SAEs that start from mined directions find the features more often?

# %%
if run.p.model == "toy":
    study, frames = planes.seed_study()
    run.metrics(study.assign(metric="seed_study_matched_cosine"))
    figures.show(
        figures.recovery_curve(study.assign(step=study["step"] + 1), "step"),
        planes.seed_study_title(study),
        "Matched cosine of the five decoder rows with the true directions against training steps (plus one, for the log "
        "axis); bands run over 20 toy models; grey: five random directions.",
    )
    figures.show(
        figures.mined_slider(frames),
        "Learned and true directions of one toy model, started from mined ones",
        "Seed 0; the slider goes through training.",
    )
    display(planes.success(study))

# %% [markdown]
# With `-p model modadd -p context_size 3` a transformer that has learned to add modulo 113, and whose circuit is known: it
# embeds numbers as waves of a few *key frequencies* and answers by waves in a + b (Nanda et al. 2023). Is this model that
# circuit, and do its SAEs see it? Latents are fitted on the pairs their SAE was trained on and judged on held-out pairs, and
# phases are arbitrary, so directions are held against each frequency's plane.

# %%
world = fourier.world(store, run)
if world is not None:
    display(world.figures)
    figures.show(
        figures.frequency_power(world.power),
        world.title,
        "Share of the embedding's non-constant power; half of the spectrum, since k and p - k are the same wave.",
    )
    figures.show(
        figures.training_curves(world.history),
        world.history_title,
        "Accuracy and cross-entropy in training, of the pairs trained on and of all others.",
    )
    seen = fourier.of_saes(world, compared, store, run)
    run.metrics(seen)
    figures.show(
        figures.arm_metrics(seen),
        fourier.title(seen),
        f"Live latents, one dot a seed, {run.p.n_seeds} in all; grey: chance (of energy in the best plane, directions of the activations' covariance; "
        "else any directions, shuffled sums, and for the losses as many other frequencies; of the whole loss, guessing). A "
        "latent that is a narrow bump on a circle is no cosine: its R² stays below 1.",
    )

# %% [markdown]
# An earlier study of the same task (HUSAI, 2025; TopK and ReLU, 5 seeds) reported an agreement of seeds that is the chance
# level of its measure. Its model, sizes and training differ from these, so the figures stand beside each other and are not
# compared.

# %%
if world is not None and run.p.n_seeds > 1:
    display(fourier.beside_reported(agreed, run.p))

# %% [markdown]
# ## The verdicts
#
# A row a hypothesis, a column a measure. *Better*: the interval of the difference, paired by seed and adjusted over the
# measures of a hypothesis, lies wholly above the margin; *equivalent*: wholly within it; *worse*: wholly below minus the
# margin; else, and always below 5 seeds, *undecided*. Positive means that `rkcnn` is better.

# %%
everything = sae_panels.measured(compared, frozen, needed, agreed.by_seed, *([] if found is None else [found]))
table = run.verdicts(verdicts.widened(verdicts.judge_arms(everything, run.p), "delta_ce", loss))
figures.show(
    figures.paired_differences(table),
    verdicts.verdict_title(table),
    f"Adjusted 95 % paired-t intervals over {run.p.n_seeds} seeds; the shaded strip is the margin. Choose the measure at the top.",
)
table.pivot(index="hypothesis", columns="metric", values="verdict")

# %% [markdown]
# Which start is best, then? For each measure the other start with the best mean, picked after the fact; its intervals hold
# for all other starts at once (Bonferroni). No verdict rests on this table.

# %%
strongest = verdicts.strongest_others(everything, run.p)
run.note(strongest=strongest.to_dict("records"))
strongest.round(4)

# %%
run.gate(sae_panels.checks(compared, run.p))
run.finish(sae_panels.headline(table, run))

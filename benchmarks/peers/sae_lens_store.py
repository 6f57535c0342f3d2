"""SAELens's activation store reading a model of GPT-2 small's shape; run by benchmarks/capture.py.

Imports no code of this project. Only the reading is timed: batches as they come from the model, before the store's
shuffling buffer, nothing written to disk.

python sae_lens_store.py '{"layer": 6, "tokens": 16384, "batch": 2048, "context": 128}'
"""

import json
import sys
import time
import warnings

import torch
from datasets import Dataset
from sae_lens import ActivationsStore
from transformer_lens import HookedTransformer, HookedTransformerConfig


def main(sizes):
    """Print the seconds that reading so many tokens takes."""
    warnings.filterwarnings("ignore")
    model = HookedTransformer(HookedTransformerConfig(
        n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_mlp=3072, d_vocab=50257, act_fn="gelu_new",
        normalization_type="LN", device="cpu",
    )).eval()  # fmt: skip
    n_contexts, batch = sizes["tokens"] // sizes["context"], sizes["batch"] // sizes["context"]
    ids = torch.randint(0, 256, (n_contexts + batch, sizes["context"]))
    store = ActivationsStore(
        model, Dataset.from_dict({"tokens": ids.tolist()}), streaming=False,
        hook_name=f"blocks.{sizes['layer']}.hook_mlp_out", hook_head_index=None, context_size=sizes["context"],
        d_in=768, n_batches_in_buffer=2, total_training_tokens=sizes["tokens"], store_batch_size_prompts=batch,
        train_batch_size_tokens=sizes["batch"], prepend_bos=False, normalize_activations="none",
        device=torch.device("cpu"), dtype="float32",
    )  # fmt: skip
    store.get_raw_llm_batch()  # warm-up
    began = time.perf_counter()
    for _ in range(n_contexts // batch):
        store.get_raw_llm_batch()
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

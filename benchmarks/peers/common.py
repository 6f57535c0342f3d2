"""What every side of benchmarks/sae.py shares: the same data, the same clock; needs torch alone."""

import json
import resource
import time


def run(make, sizes):
    """Time ``make(sizes, device)``'s step and print seconds a step (median) and the peak memory in MiB.

    With ``n_saes`` > 1 that many SAEs take a step on each batch, one after another.
    """
    import torch

    torch.set_num_threads(sizes["threads"])
    device = sizes["device"]
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(sizes["batch_size"], sizes["d_in"], generator=generator).to(device) for _ in range(4)]
    steps = [make(sizes, device) for _ in range(sizes["n_saes"])]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for i in range(sizes["warm_up"] + sizes["steps"]):
        wait()
        began = time.perf_counter()
        for step in steps:
            step(batches[i % len(batches)])
        wait()
        times.append(time.perf_counter() - began)
    taken = sorted(times[sizes["warm_up"] :])
    peak = (
        torch.cuda.max_memory_allocated() / 2**20
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    )
    print(json.dumps({"seconds": taken[len(taken) // 2], "peak_mib": peak, "torch": torch.__version__}))

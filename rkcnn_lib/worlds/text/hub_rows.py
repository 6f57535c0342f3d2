"""Run as a process of its own by :mod:`rkcnn_lib.worlds.text.sources`: write a hub data set's texts to standard output.

    python -P hub_rows.py DATASET CONFIGURATION COMMIT

One JSON string (or null) a row, the training split in order, as streamed; last ``{"end": null}``, or
``{"end": "what went wrong"}``. A process, because a stream that hangs can then be ended: threads of `datasets` and
pyarrow that still wait when an interpreter exits abort it.
"""

import json
import os
import sys


def main(dataset: str, config: str, commit: str) -> None:
    """Write the rows of one data set (``config`` may be empty: it has one configuration only)."""
    end = None
    try:
        from datasets import load_dataset

        for row in load_dataset(dataset, config or None, revision=commit, split="train", streaming=True):
            if not isinstance(row["text"], str | None):
                raise TypeError(f'"text" is of type {type(row["text"]).__name__}, expected a string or null')
            print(json.dumps(row["text"]))
    except BrokenPipeError:  # the reader has enough
        os._exit(0)
    except Exception as error:
        end = f"{type(error).__name__}: {' '.join(str(error).split())}"
    print(json.dumps({"end": end}), flush=True)
    os._exit(0)  # not the long way out, where those threads abort


if __name__ == "__main__":
    main(*sys.argv[1:])

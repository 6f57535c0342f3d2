"""Do directions mined by random-subset probing (RkCNN) make better sparse autoencoders?

Five rooms, through which data flows left to right::

    worlds   where activations come from      probe    RkCNN itself, its rivals and its nulls
    sae      sparse autoencoders              measure  tensors in, numbers out
    report   parameters, runs, figures, pages

Importing this package imports none of them, so it stays fast; import from the rooms.
"""

__version__ = "0.1.0"

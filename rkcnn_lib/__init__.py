"""Do directions mined by random-subset probing (RkCNN) make better sparse autoencoders?

Eight rooms; each imports only from those before it, and the first four know none of each other::

    worlds   where activations come from      probe    RkCNN itself, its rivals and its nulls
    sae      sparse autoencoders              measure  tensors in, numbers out; a model where one is passed in
    runs     parameters, run folders, units   studies  what each notebook computes and tells
    figures  tables in, plotly figures out    pages    executed notebooks to pages, cards, explorers

`cli` is the ``rkcnn`` command. ``files``, ``tensors`` and ``strings`` lie below all rooms.

Importing this package imports none of them, so it stays fast; import from the rooms.
"""

__version__ = "1.0.0"

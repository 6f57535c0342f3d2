"""Language models: what they are, loading, hooks, and a forward pass with something at a hook."""

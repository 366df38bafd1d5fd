"""The captured program: how it is taken from a model, kept on disk, and run in torch."""

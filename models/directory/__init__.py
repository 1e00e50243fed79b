"""What a model is on disk: its files, what config.json says, and the digests by which two models are the same."""

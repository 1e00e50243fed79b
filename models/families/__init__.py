"""The supported Hugging Face families, a module each: what config.json says of their sizes, and how parameters are named."""

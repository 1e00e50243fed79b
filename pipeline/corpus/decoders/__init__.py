"""Decoders: the bytes of a file as raw values, by the rules of its format and within a bounded amount of memory."""

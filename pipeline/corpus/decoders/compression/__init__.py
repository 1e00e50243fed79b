"""Compressed files as streams of bounded pieces."""

"""Shards -> tokenize -> classify -> write -> receipts. The engine and all it needs run without Ray."""

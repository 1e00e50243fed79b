"""Texts of one window or more: a floor above the engine, which knows windows alone."""

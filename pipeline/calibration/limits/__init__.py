"""What a run may be held to beside its disagreement: every class for itself, and quality where rows have labels."""

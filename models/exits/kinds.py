"""The kinds of exit heads, as users name them; models.heads has the heads."""

HEAD_KINDS = ("pooled", "attention")

"""How attention knows where tokens are, in families that do not leave it to a table of positions alone."""

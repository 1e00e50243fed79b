"""The audited rows of past nights, on which a model is calibrated again."""

"""The work of jobs/calibrate.py: on a sample of texts, and on the audited rows of output folders."""

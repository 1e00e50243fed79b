"""The work of each job, and what several of them share: heavy modules, loaded once a job's options are known to be right.

`jobs/<job>.py` has the options and loads neither torch nor Ray; its `main` hands them to `run` in `jobs/work/<job>.py`;
that of calibrate.py to one of two in `jobs/work/calibration`.
"""

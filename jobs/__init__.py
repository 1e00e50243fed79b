"""The command line. Each job: parse -> compose -> run -> report."""

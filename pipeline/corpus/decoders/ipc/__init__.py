"""Arrow IPC files and streams, read by ranges of bytes, so that neither a batch nor a file is ever in memory as a whole."""

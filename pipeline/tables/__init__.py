"""Tables over an output folder, by which programs that know nothing of offramp read what the manifest names, and no more."""

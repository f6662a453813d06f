"""Files to arrays to batches. Import from the submodules; this file stays light on purpose."""

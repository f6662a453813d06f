"""Checks of scans before any of them is trained on. Import from the submodules."""

"""Breaks each guarantee on purpose, in a copy of the tree, and demands that its tests notice. Run by `make prove`."""

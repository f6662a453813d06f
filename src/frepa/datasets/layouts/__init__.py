"""How labelled sets lie on disk: one file per layout."""

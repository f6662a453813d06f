"""How sets with boxes are laid out: one file per layout, found by looking at the source."""

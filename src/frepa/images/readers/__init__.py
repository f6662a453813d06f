"""One file per format family. ``registry`` says which file reads which name, and imports it only when needed."""

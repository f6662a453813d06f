"""The catalogue of public datasets: what they are, where to get them, how their folders are laid out.

One YAML file per dataset in ``data/``. Its ``read`` section is a list of steps, each one registered in ``adapters/``,
that turns a folder in the dataset's own layout into one table of records. A new dataset is one new file.
"""

"""The store: every record of a source read once, checked, hashed and packed, so that training reads it fast.

A store is a folder::

    store.json          what it is: format, dimensionality, number of records, modalities, hashes of the index
    index.parquet       one row per record, for people and other tools
    index/*.bin         the same as fixed-width rows and columns, mapped from disk by every process that trains
    shards/NNNNN.b2     records one after another, each a blosc2 NDArray in its contiguous form
    skipped.csv         records that could not be used, by anonymous id, and why
    unfinished/         only while it is being made: the plan, and one journal per shard

Nothing in it names a patient, a folder or a file: a record is known by its id, the first 16 digits of the sha256 of its
name within the source. Names are kept only on request (``keep_names``).

Which record goes to which shard follows from the source's listing alone and a shard is written in that order by one
process, so the bytes do not depend on the number of processes, on their timing or on interruptions.
"""

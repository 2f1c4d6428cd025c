"""The index of one machine: an owner process that holds Qdrant's engine and speaks Qdrant's REST API.

client   starts, finds and stops the owner; the QdrantClient that everyone else uses
access   the lock and the file by which the owner is found; unix_http: requests by its socket
owner    the process: listens, syncs, ends
app      the table of routes; http: the key, limits, errors
store    all collections; state: the one file that says which there are
collection, config, writes     one collection, what it is made of, what is written to it
vectors, filters, query, ...   from the REST models to the engine's and back
depth    how deep requests may nest, so that the engine can read its log
journal, checksum, salvage, probe   the write-ahead log, and opening a shard whose log cannot be replayed
graphs, builder, snapshots     what takes long, done in another process
"""

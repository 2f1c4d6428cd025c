"""Run Qdrant's engine as an index for one machine.

An owner process holds the engine and speaks Qdrant's REST API; clients find it by a lock and a file.

process/   client: starts, finds and stops the owner; discovery: its lock and its address file
           owner: listens, syncs, ends; connections, unix_http: its sockets
           graph_builder, shard_probe: separate processes for long or dangerous work
protocol/  routes: the table of routes; http: the key, the limits, errors; json_depth: the nesting of requests
           config, reads, query, writes, ...: from the REST API's models to the engine's and back
engine/    store: all collections; state: the file that lists them; collection: one of them
           bindings: the seam to Qdrant's Rust engine; target: a collection for reads
           graphs, snapshots: long work; write_ahead_log, log_salvage: shards whose log cannot be replayed
"""

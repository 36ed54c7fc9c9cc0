"""What the shard writer and the loader agree on: encoded members, and where they are in a tar."""

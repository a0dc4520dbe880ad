"""Shards -> plan -> batches: the flow of one stage, put together from the parts."""

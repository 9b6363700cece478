"""HTTP service that gives verdicts, and a monitor of the stream of scores."""

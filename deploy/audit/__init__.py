"""Whether the records that the parties kept of a run agree, and what the run hands out as evidence."""

"""What an attack on a run finds out, and whether the parties' own records of it agree."""

"""A small page for an operator, of the consortium or of a hospital: the same as the commands show, in a browser."""
